package lifecycle

import (
	"context"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"gapless/internal/control"
	"gapless/internal/packet"
	"gapless/internal/pidfd"

	"go.uber.org/zap"
)

// linked gives the parent of a succession a link and a controller, and returns the masters' end.
func linked(t *testing.T, p *parent) *packet.Conn {
	t.Helper()
	mine, theirs, err := packet.Pair()
	if err != nil {
		t.Fatal(err)
	}
	if p.link, err = packet.New(mine); err != nil {
		t.Fatal(err)
	}
	end, err := packet.New(theirs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.link.Close(); end.Close() })
	p.commands = make(chan linkMessage, 1)
	p.ctl = newController(p, "1", zap.NewNop())
	return end
}

// turn does what govern does in one turn.
func turn(p *parent) {
	p.ctl.vacancy.set(p.current == nil)
	p.forward()
}

// ask asks once, for a master that may not answer.
func ask(p *parent, v verb) (cl *call, done func()) {
	cl, done = p.ctl.order(context.Background(), command{Verb: v})
	p.pass(<-p.commands)
	turn(p)
	return cl, done
}

// unread takes what waits on the link.
func unread(t *testing.T, end *packet.Conn) (list []linkMessage) {
	t.Helper()
	for {
		// Both ends are of one process: what has been sent is there.
		_ = end.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		var m linkMessage
		if _, err := end.Receive(&m); err != nil {
			return list
		}
		list = append(list, m)
	}
}

func TestOrders_NothingIsAskedWhileNoMasterIsInCharge(t *testing.T) {
	s := newSuccession(t)
	end := linked(t, s.p)
	s.p.current, s.p.orphaned = nil, s.a
	turn(s.p)
	s.p.signal(syscall.SIGHUP)
	for range 400 { // more than the link takes
		for _, v := range []verb{verbHealth, verbStatus} {
			_, done := ask(s.p, v)
			done()
		}
	}
	_, done := ask(s.p, verbStatus) // its client is waiting still
	defer done()
	if got := unread(t, end); len(got) != 0 {
		t.Errorf("%d messages on the link, the first of them %+v", len(got), got[0])
	}
	s.p.promote(s.b)
	turn(s.p)
	got := unread(t, end)
	if len(got) != 2 || got[0].Signal != syscall.SIGHUP || got[1].Command == nil || got[1].Command.Verb != verbStatus {
		t.Errorf("the next master is told %+v; want the signal and the question that somebody waits for", got)
	}
}

func TestOrders_OneQuestionForTheHealthIsOutstanding(t *testing.T) {
	s := newSuccession(t)
	end := linked(t, s.p)
	for range 400 { // the master hangs
		_, done := ask(s.p, verbHealth)
		done()
	}
	got := unread(t, end)
	if len(got) != 1 {
		t.Fatalf("%d questions on the link", len(got))
	}
	cl, done := ask(s.p, verbHealth)
	defer done()
	if got := unread(t, end); len(got) != 0 {
		t.Errorf("asked again before the answer: %+v", got)
	}
	s.p.acked(got[0].Seq) // it is awake, and late
	turn(s.p)
	if got = unread(t, end); len(got) != 1 {
		t.Fatalf("after the answer it is asked %d times", len(got))
	}
	s.p.ctl.hear(linkMessage{Seq: got[0].Seq, Ack: true, Result: &control.Result{OK: true}}, nil)
	if r := <-cl.result; !r.OK {
		t.Errorf("got %+v", r)
	}
	s.p.acked(got[0].Seq)

	s.p.promote(s.b)
	turn(s.p)
	if got := unread(t, end); len(got) != 0 {
		t.Errorf("repeated to the next master: %+v", got)
	}
}

// Govern is the only one to take in the acknowledgements: it must not wait until the master has read.
func TestOrders_AFullLinkKeepsNobodyWaiting(t *testing.T) {
	s := newSuccession(t)
	end := linked(t, s.p)
	const all = 2000
	began := time.Now()
	for range all {
		s.p.pass(linkMessage{Seq: s.p.nextSeq(), Signal: syscall.SIGTTIN})
		turn(s.p)
	}
	if s.p.retryC == nil {
		t.Fatal("the link is not full, or nobody looks again")
	}
	if took := time.Since(began); took > 10*time.Second { // a second for each was the bug
		t.Errorf("it took %v", took)
	}
	next := uint64(1)
	for next <= all {
		list := unread(t, end)
		if len(list) == 0 {
			t.Fatalf("the rest, from %d on, does not come", next)
		}
		for _, m := range list {
			if m.Seq != next {
				t.Fatalf("number %d came, want %d", m.Seq, next)
			}
			s.p.acked(m.Seq)
			next++
		}
		turn(s.p)
	}
	if s.p.retryC != nil || len(s.p.orders.list) != 0 {
		t.Error("there is more to send")
	}
}

// What the watchdog and /readyz hear while no master is in charge: workers that live serve, for so long.
func TestParent_AnswersForTheWorkersInAPause(t *testing.T) {
	for _, tt := range []struct {
		name       string
		generation int // of the worker
		dead       bool
		vacant     time.Duration
		unowned    bool // nobody was in charge yet
		want       bool
	}{
		{name: "a worker lives", generation: 1, want: true},
		{name: "through the longest pause", generation: 1, vacant: restartMost + undecidedMaster, want: true},
		{name: "no master comes", generation: 1, vacant: vacancyMost + time.Second},
		{name: "the worker is dead", generation: 1, dead: true},
		{name: "another generation's lives", generation: 7},
		{name: "before the start", generation: 1, unowned: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSuccession(t)
			end := linked(t, s.p)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			worker, err := pidfd.Start("/bin/sh", []string{"sh", "-c", "read x"}, &syscall.ProcAttr{Files: []uintptr{r.Fd(), 1, 2}})
			r.Close()
			if err != nil {
				t.Fatal(err)
			}
			defer worker.Close()
			defer func() { _ = worker.Signal(syscall.SIGKILL); <-worker.Done() }()
			null, err := syscall.Open(os.DevNull, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			name := workerPrefix + strconv.Itoa(tt.generation) + ".0." + strconv.Itoa(worker.PID())
			if err := s.p.store.put(name, s.a.PID(), []int{null}, true); err != nil {
				t.Fatal(err)
			}
			if tt.dead {
				w.Close()
				<-worker.Done()
			}

			cl, done := ask(s.p, verbHealth) // on its way when the master dies
			defer done()
			if got := unread(t, end); len(got) != 1 {
				t.Fatalf("the master is asked %d times", len(got))
			}
			s.p.current, s.p.orphaned, s.p.inCharge = nil, s.a, !tt.unowned
			s.p.ctl.vacancy.set(true)
			s.p.ctl.vacancy.since = time.Now().Add(-tt.vacant)
			turn(s.p)
			select {
			case r := <-cl.result:
				if r.OK != tt.want {
					t.Errorf("the question on its way is answered with %t, want %t", r.OK, tt.want)
				}
			default:
				t.Error("the question on its way is not answered")
			}
			cl, done = ask(s.p, verbHealth)
			defer done()
			if r := <-cl.result; r.OK != tt.want {
				t.Errorf("got %t, want %t", r.OK, tt.want)
			}
			if len(unread(t, end)) != 0 {
				t.Error("the link is written to")
			}
		})
	}
}
