package workerpool

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"gapless/internal/channel"
	"gapless/internal/pidfd"
	"gapless/internal/testwait"
)

// travel brings records to another master as the wire does: as JSON and files.
func travel(t testing.TB, records []Record) []Record {
	t.Helper()
	var arrived []Record
	for _, r := range records {
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		next := Record{Files: r.Files}
		if err := json.Unmarshal(data, &next); err != nil {
			t.Fatal(err)
		}
		arrived = append(arrived, next)
	}
	return arrived
}

func TestPool_StartsNothingWhileFrozen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := started(t, 2, stubborn)
		records, err := m.Freeze()
		if err != nil || len(records) != 2 {
			t.Fatalf("%d records, %v", len(records), err)
		}
		closeAll(records)
		p := w.alive()[0]
		p.die(exited3)
		if err := m.StartHelper("relay", Launch{}); err == nil {
			t.Error("a helper was started")
		}
		<-time.After(time.Minute)
		if n := w.count("spawn", 0); n != 2 {
			t.Fatalf("%d processes were started, want 2", n)
		}
		thawed := time.Now()
		m.Thaw()
		e := w.awaitEntry("spawn", 0, 2)
		if d := e.at.Sub(thawed); d != 0 {
			t.Errorf("the restart came %v after the thaw", d)
		}
		w.mu.Lock()
		if slot := w.programs[e.pid].slot; slot != p.slot {
			t.Errorf("it came in slot %d, not in %d", slot, p.slot)
		}
		w.mu.Unlock()
		m.end()
		w.verify()
	})
}

func closeAll(records []Record) {
	for i := range records {
		records[i].Close()
	}
}

func TestPool_FreezeIsUndoneByThaw(t *testing.T) {
	w := newWorld(t)
	w.script = func(p *program) error { return p.speak() }
	m := w.newMaster(1, func(c *Config) { c.Owns = func(_, sender int) bool { return sender == os.Getpid() } })
	result := make(chan error, 1)
	go func() { result <- m.Start(t.Context(), 2) }()
	w.awaitEntry("state starting", 0, 1)
	for range 3 {
		records, err := m.Freeze()
		if err != nil {
			t.Fatal(err)
		}
		closeAll(records)
		again, err := m.Freeze() // a second one changes nothing
		if err != nil || len(again) != 2 {
			t.Fatal(len(again), err)
		}
		closeAll(again)
		m.Thaw()
		m.Thaw()
	}
	records, err := m.Freeze()
	if err != nil {
		t.Fatal(err)
	}
	closeAll(records)
	// What the workers say meanwhile waits in the kernel.
	ps := w.alive()
	sayReady(t, ps[0])
	ps[1].notify("READY=1")
	for _, i := range m.Workers() {
		if i.State != Starting {
			t.Errorf("a worker was heard while the pool was frozen: %+v", i)
		}
	}
	m.Thaw()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	m.end()
	w.verify()
}

// Two masters, one after the other: the first has a worker that drains and is told, one that serves; the second takes
// over, drains the one that serves, and keeps the deadline of the other.
func TestPool_HandsItsWorkersToTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, old := started(t, 2, stubborn)
		told, serving := w.alive()[0], w.alive()[1]
		for _, wk := range old.all(func(i Info) bool { return i.PID == told.pid }) {
			wk.orderAlone(Order{Reason: "an earlier upgrade", Timeout: 30 * time.Second})
		}
		due := w.awaitEntry("TERM", told.pid, 0).at.Add(30 * time.Second)
		<-time.After(10 * time.Second)

		records, err := old.Freeze()
		if err != nil {
			t.Fatal(err)
		}
		old.leave()
		next := w.newMaster(2, nil)
		if err := next.Start(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		next.Adopt(travel(t, records))

		infos := next.Workers()
		slices.SortFunc(infos, func(a, b Info) int { return a.PID - b.PID })
		if len(infos) != 3 {
			t.Fatalf("%d workers, want 3", len(infos))
		}
		if i := infos[0]; i.PID != told.pid || i.Generation != 1 || i.State != Draining || !i.Told || i.Reason != "an earlier upgrade" {
			t.Errorf("the draining one came as %+v", i)
		}
		if i := infos[1]; i.PID != serving.pid || i.State != Ready || i.Told || !slices.Equal(i.Lanes, []string{fmt.Sprint("http.", serving.slot)}) {
			t.Errorf("the serving one came as %+v", i)
		}
		before := time.Now()
		next.DrainOthers(Order{Reason: "upgrade", Timeout: time.Hour})
		next.DrainOthers(Order{Reason: "upgrade", Timeout: time.Hour})
		if e := w.awaitEntry("group KILL", told.pid, 0); !e.at.Equal(due) {
			t.Errorf("the draining one was killed at %v, want %v", e.at, due)
		}
		if n := w.count("TERM", told.pid); n != 1 {
			t.Errorf("it was told %d times", n)
		}
		if e := w.awaitEntry("group KILL", serving.pid, 0); e.at.Sub(before) != time.Hour {
			t.Errorf("the serving one was killed after %v", e.at.Sub(before))
		}
		synctest.Wait()
		want := []string{"withdraw", "withdrawn", "TERM", "group KILL", "exit", "release", "was killing"}
		about := w.about(serving.pid)
		if got := about[slices.Index(about, "withdraw"):]; !slices.Equal(got, want) {
			t.Errorf("the serving one: %q, want %q", got, want)
		}
		if n := w.count("spawn", 0); n != 3 {
			t.Errorf("an adopted worker was restarted: %d processes", n)
		}
		if infos := next.Workers(); len(infos) != 1 || infos[0].Generation != 2 {
			t.Errorf("left are %+v", infos)
		}
		next.end()
		old.end()
		w.verify()
	})
}

func TestPool_AnAdoptedDeadlineThatIsOverKillsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, old := started(t, 1, stubborn)
		for _, wk := range old.all(nil) {
			wk.orderAlone(Order{Timeout: 5 * time.Second})
		}
		w.awaitEntry("TERM", 0, 0)
		records, err := old.Freeze()
		if err != nil {
			t.Fatal(err)
		}
		old.leave()
		<-time.After(10 * time.Second)
		next := w.newMaster(2, nil)
		at := time.Now()
		next.Adopt(travel(t, records))
		if e := w.awaitEntry("group KILL", 0, 0); !e.at.Equal(at) {
			t.Errorf("killed %v later", e.at.Sub(at))
		}
		next.end()
		old.end()
		w.verify()
	})
}

// What a worker that speaks said and is told goes on where it was, over the same sockets.
func TestPool_TheNextMasterIsHeardAndHears(t *testing.T) {
	w := newWorld(t)
	heard, files := talker(t, w)
	old := w.newMaster(1, nil)
	if err := old.Start(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	p := w.alive()[0]
	records, err := old.Freeze()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.ch.Send(channel.Status{InFlight: 5}, nil); err != nil { // for the next master to read
		t.Fatal(err)
	}
	old.leave()
	next := w.newMaster(2, nil)
	next.Adopt(travel(t, records))
	testwait.Until(t, "the status of the adopted worker", func() bool {
		ws := next.Workers()
		return len(ws) == 1 && ws[0].InFlight == 5 && ws[0].Handoff
	})
	next.DrainOthers(Order{Timeout: time.Minute})
	if got := <-heard; got != (channel.Drain{Deadline: time.Minute}) {
		t.Errorf("it heard %+v", got)
	}
	<-files
	p.die(pidfd.Status{Known: true})
	<-next.Empty()
	if n := w.count("TERM", 0); n != 0 {
		t.Errorf("it got the stop signal, too")
	}
	next.end()
	old.end()
	w.verify()
}

// What is settled while the pool is frozen must not be acted on: the record says "not told", so the next master tells.
func TestPool_TellsNobodyWhileFrozen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := started(t, 1, stubborn)
		settled := make(chan struct{})
		m.gate.withdraw = func(Info) { <-settled }
		for _, wk := range m.all(nil) {
			wk.orderAlone(Order{Timeout: time.Minute})
		}
		w.awaitEntry("withdraw", 0, 0)
		records, err := m.Freeze()
		if err != nil {
			t.Fatal(err)
		}
		defer closeAll(records)
		close(settled)
		synctest.Wait()
		if n := w.count("TERM", 0); n != 0 && !records[0].Told {
			t.Error("a worker whose record says that it was not told got the stop signal")
		}
		m.Thaw()
		w.awaitEntry("TERM", 0, 0)
		m.end()
		w.verify()
	})
}

func TestPool_AdoptCopesWithWhatIsMissing(t *testing.T) {
	null := func() *os.File {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	for _, tc := range []struct {
		name   string
		record Record
	}{
		{"no descriptors at all", Record{Info: Info{ID: ID{PID: 1001, Generation: 1}, State: Ready}}},
		{"more kinds than files", Record{Info: Info{ID: ID{PID: 1001, Generation: 1}, State: Ready}, Kinds: []string{kindPIDFD}}},
		{"a process that is not there", Record{Info: Info{ID: ID{PID: 5, Generation: 1}, State: Ready}, Kinds: []string{kindPIDFD}, Files: []*os.File{null()}}},
		{"an unknown kind", Record{Info: Info{ID: ID{PID: 1001, Generation: 1}, State: Ready}, Kinds: []string{"later"}, Files: []*os.File{null()}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			m := w.newMaster(2, nil)
			m.Adopt([]Record{tc.record})
			if len(m.Workers()) != 0 {
				t.Errorf("adopted %+v", m.Workers())
			}
			if n := m.logs.FilterMessageSnippet("cannot be adopted").Len(); n != 1 {
				t.Errorf("%d errors were logged", n)
			}
			m.end()
			w.verify()
		})
	}
}

// A worker whose descriptors are of no use is not adopted, and nothing of it stays open.
func TestPool_AdoptLetsGoOfWhatItCannotUse(t *testing.T) {
	w, old := started(t, 1, nil)
	records, err := old.Freeze()
	if err != nil {
		t.Fatal(err)
	}
	old.leave()
	r := &records[0]
	r.take(kindChannel).Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	r.add(kindChannel, null)
	next := w.newMaster(2, nil)
	next.Adopt(records)
	if len(next.Workers()) != 0 {
		t.Errorf("adopted %+v", next.Workers())
	}
	w.alive()[0].die(exited3)
	next.end()
	old.end()
	w.mu.Lock()
	defer w.mu.Unlock()
	for pid, p := range w.programs {
		if p.holders != 0 {
			t.Errorf("%d handles of process %d are open", p.holders, pid)
		}
	}
}

// An earlier master may have had no channel: then the stop signal is all that there is.
func TestPool_AdoptsAWorkerWithoutAChannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, old := started(t, 1, nil)
		records, err := old.Freeze()
		if err != nil {
			t.Fatal(err)
		}
		old.leave()
		r := &records[0]
		for _, kind := range []string{kindChannel, kindNotify} {
			if f := r.take(kind); f != nil {
				f.Close()
			}
		}
		r.TakesDrain = true
		next := w.newMaster(2, nil)
		next.Adopt(travel(t, records))
		next.DrainOthers(Order{Timeout: time.Minute})
		<-next.Empty()
		if n := w.count("TERM", 0); n != 1 {
			t.Errorf("%d TERM, want 1", n)
		}
		next.end()
		old.end()
		w.verify()
	})
}

// A worker may end at any moment of a hand-over: the pool freezes and thaws all the same.
func TestPool_FreezesWhileWorkersExit(t *testing.T) {
	for range 20 {
		w := newWorld(t)
		m := w.newMaster(1, func(c *Config) { c.Random = func() float64 { return 0 } })
		if err := m.Start(t.Context(), 8); err != nil {
			t.Fatal(err)
		}
		dying := make(chan struct{})
		go func() {
			defer close(dying)
			for _, p := range w.alive() {
				p.die(pidfd.Status{Known: true, Signal: syscall.SIGSEGV})
			}
		}()
		for range 20 {
			records, err := m.Freeze()
			if err != nil {
				t.Errorf("freeze: %v", err)
			}
			closeAll(records)
			m.Thaw()
		}
		<-dying
		m.end()
		w.verify()
		if t.Failed() {
			return
		}
	}
}

// What a wrapper left behind may drain for long. Nobody waits for it to hand the worker over.
func TestPool_FreezesWhileTheRestOfAGroupDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, old := started(t, 1, func(p *program) error {
			p.serving, p.members = true, 1
			p.exitOn(syscall.SIGTERM, 143)
			return nil
		})
		for _, wk := range old.all(nil) {
			wk.orderAlone(Order{Timeout: 30 * time.Second})
		}
		due := w.awaitEntry("TERM", 0, 0).at.Add(30 * time.Second)
		w.awaitEntry("group TERM", 0, 0)
		at := time.Now()
		records, err := old.Freeze()
		if err != nil || len(records) != 1 {
			t.Fatalf("%d records, %v", len(records), err)
		}
		if d := time.Since(at); d != 0 {
			t.Errorf("the pool froze after %v", d)
		}
		old.leave()
		next := w.newMaster(2, nil)
		next.Adopt(travel(t, records))
		if e := w.awaitEntry("group KILL", 0, 0); e.at.Before(due) || e.at.Sub(due) > groupPoll {
			t.Errorf("the rest was killed %v after the end of the drain", e.at.Sub(due))
		}
		next.end()
		old.end()
		w.verify()
	})
}
