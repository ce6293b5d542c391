package workerpool

import (
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gapless/internal/channel"
	"gapless/internal/packet"
	"gapless/internal/testwait"
)

// talker is a worker that knows the channel. It keeps what it is told and goes on until it is killed.
func talker(t *testing.T, w *world) (heard chan channel.Drain, files chan *os.File) {
	heard, files = make(chan channel.Drain, 8), make(chan *os.File, 8)
	w.script = func(p *program) error {
		if err := p.speak(); err != nil {
			return err
		}
		sayReady(t, p)
		go func() {
			defer close(heard)
			for {
				m, f, err := p.ch.Receive(t.Context())
				if err != nil {
					return
				}
				if d, ok := m.(channel.Drain); ok {
					heard <- d
					files <- f
				}
			}
		}()
		return nil
	}
	return heard, files
}

func TestPool_TellsAWorkerThatKnowsTheChannel(t *testing.T) {
	w := newWorld(t)
	heard, files := talker(t, w)
	m := w.newMaster(1, nil)
	if err := m.Start(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	a, b, err := packet.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer packet.CloseAll([]*os.File{a, b})
	var asked atomic.Int32
	for _, wk := range m.all(nil) {
		wk.orderAlone(Order{Timeout: time.Minute, Extra: 2 * time.Second, Spread: 3 * time.Second,
			Queue: func() *os.File { asked.Add(1); return a }})
	}
	want := channel.Drain{Deadline: time.Minute, Extra: 2 * time.Second, Spread: 3 * time.Second, Handoff: true}
	if got := <-heard; got != want {
		t.Errorf("it heard %+v, want %+v", got, want)
	}
	queue := <-files
	if queue == nil || asked.Load() != 1 {
		t.Fatalf("the queue was asked for %d times and came as %v", asked.Load(), queue)
	}
	defer queue.Close()
	conn, err := packet.New(queue)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Send("a connection"); err != nil {
		t.Errorf("what came is not the queue: %v", err)
	}

	// What it says while it drains is known.
	p := w.alive()[0]
	if err := p.ch.Send(channel.Status{InFlight: 4, Connections: 7, Handed: 9}, nil); err != nil {
		t.Fatal(err)
	}
	testwait.Until(t, "the worker's status", func() bool {
		i := m.Workers()[0]
		return i.InFlight == 4 && i.Connections == 7 && i.Handed == 9 && i.Told && i.Handoff
	})
	if got := m.all(nil)[0].holding(); got != "4 requests in flight, 7 connections open" {
		t.Errorf("it holds %q", got)
	}

	// A full stop is told as well, without a queue, and once only where it comes twice before it is read.
	m.DrainAll(Order{Stop: true, Timeout: time.Second, Queue: func() *os.File { t.Error("a full stop asks for a queue"); return a }})
	if got, want := <-heard, (channel.Drain{Deadline: time.Second, Stop: true}); got != want {
		t.Errorf("it heard %+v, want %+v", got, want)
	}
	if f := <-files; f != nil {
		f.Close()
		t.Error("a full stop came with a queue")
	}
	if n := w.count("TERM", 0); n != 0 {
		t.Error("it got the stop signal, too")
	}
	m.end()
	w.verify()
}

func TestPool_AFullStopHasNoQueue(t *testing.T) {
	w := newWorld(t)
	heard, files := talker(t, w)
	m := w.newMaster(1, nil)
	if err := m.Start(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	m.DrainAll(Order{Stop: true, Queue: func() *os.File { t.Error("asked for"); return nil }})
	if got := <-heard; got != (channel.Drain{Stop: true}) {
		t.Errorf("it heard %+v", got)
	}
	if f := <-files; f != nil {
		t.Error("a file came along")
	}
	m.end()
	w.verify()
}

func TestPool_WithoutATakerThereIsNoQueue(t *testing.T) {
	w := newWorld(t)
	heard, files := talker(t, w)
	m := w.newMaster(1, nil)
	if err := m.Start(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	for _, wk := range m.all(nil) {
		wk.orderAlone(Order{Queue: func() *os.File { return nil }})
	}
	if got := <-heard; got != (channel.Drain{}) {
		t.Errorf("it heard %+v", got)
	}
	if f := <-files; f != nil {
		t.Error("a file came along")
	}
	m.end()
	w.verify()
}

// A full stop that comes while a worker still settles for an upgrade must reach it: there is nobody to give connections to.
func TestPool_AFullStopReachesAWorkerThatIsSettling(t *testing.T) {
	w := newWorld(t)
	heard, files := talker(t, w)
	m := w.newMaster(1, nil)
	if err := m.Start(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	settled := make(chan struct{})
	m.gate.withdraw = func(Info) { <-settled }
	a, b, err := packet.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer packet.CloseAll([]*os.File{a, b})
	for _, wk := range m.all(nil) {
		wk.orderAlone(Order{Timeout: time.Hour, Queue: func() *os.File { return a }})
	}
	w.awaitEntry("withdraw", 0, 0)
	m.DrainAll(Order{Stop: true, Timeout: time.Hour})
	testwait.Until(t, "the second order is taken", func() bool { return len(m.all(nil)[0].orders) == 0 })
	close(settled)
	first := <-heard
	if f := <-files; f != nil {
		f.Close()
	}
	if !first.Stop || first.Handoff {
		t.Errorf("it heard %+v", first)
	}
	m.end()
	w.verify()
}

func TestPool_AWorkerThatClosedItsChannelGetsTheSignal(t *testing.T) {
	w := newWorld(t)
	w.script = func(p *program) error {
		if err := p.speak(); err != nil {
			return err
		}
		p.exitOn(syscall.SIGTERM, 0)
		return p.ch.Send(channel.Ready{Version: 1, PID: p.pid, Drain: true}, nil)
	}
	m := w.newMaster(1, nil)
	if err := m.Start(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	w.alive()[0].ch.Close()
	m.DrainAll(Order{Stop: true})
	m.Wait()
	if n := w.count("TERM", 0); n != 1 {
		t.Errorf("%d TERM, want 1", n)
	}
	m.end()
	w.verify()
}

func TestPool_ExtraTimeIsForWorkersThatKnowTheChannel(t *testing.T) {
	const timeout, extra = 30 * time.Millisecond, 60 * time.Millisecond
	for _, tc := range []struct {
		name  string
		drain bool
		want  time.Duration
	}{{"knows it", true, timeout + extra}, {"does not", false, timeout}} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.script = func(p *program) error {
				if err := p.speak(); err != nil {
					return err
				}
				return p.ch.Send(channel.Ready{Version: 1, PID: p.pid, Drain: tc.drain}, nil)
			}
			m := w.newMaster(1, nil)
			if err := m.Start(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			m.DrainAll(Order{Stop: true, Timeout: timeout, Extra: extra})
			m.Wait()
			withdrawn, killed := w.awaitEntry("withdrawn", 0, 0), w.awaitEntry("group KILL", 0, 0)
			if d := killed.at.Sub(withdrawn.at); d < tc.want {
				t.Errorf("killed after %v, want %v", d, tc.want)
			}
			reasons := m.logs.FilterMessageSnippet("stop signal")
			if reasons.Len() != 0 {
				t.Errorf("logged %v", reasons.All())
			}
			m.end()
			w.verify()
		})
	}
}
