package workerpool

import (
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"gapless/internal/channel"
)

// slowKeeper takes its time, and notes what it keeps of a worker's order to drain.
type slowKeeper struct {
	noKeeper
	m *master
}

// Sync notes for each worker that is known to have been told.
func (k *slowKeeper) Sync() {
	records := k.m.Records()
	<-time.After(10 * time.Millisecond)
	k.m.k.w.mu.Lock()
	defer k.m.k.w.mu.Unlock()
	for _, r := range records {
		if r.Told {
			k.m.k.w.note("kept as told", r.PID)
		}
	}
}

// A master that is killed has told nobody of whom that is not known.
func TestPool_NotesThatAWorkerIsToldBeforeItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.bubble, w.script = true, serves
		k := &slowKeeper{}
		m := w.newMaster(1, func(c *Config) { c.Keeper = k })
		k.m = m
		if err := m.Start(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		pid := w.pids(0)[0]
		m.DrainAll(Order{Stop: true, Timeout: time.Minute})
		w.awaitEntry("release", pid, 0)
		about := w.about(pid)
		if told, kept := slices.Index(about, "TERM"), slices.Index(about, "kept as told"); kept < 0 || told < kept {
			t.Errorf("the order of things is %v", about)
		}
		m.end()
		w.verify()
	})
}

// Between the note and the signal a master may be killed. The one in its place finds out.
func TestPool_TellsAWorkerThatMayNotHaveBeenTold(t *testing.T) {
	for _, tt := range []struct {
		name  string
		heard bool          // it has stopped to wait for connections
		since time.Duration // its note
		at    time.Duration // of the second stop signal, after the resumption; 0: there is none
	}{
		{"it was", true, 10 * time.Millisecond, 0},
		{"it was not", false, 10 * time.Millisecond, doubtLeast - 10*time.Millisecond},
		{"it was not, and it took a while", false, 10 * time.Second, time.Nanosecond},
		{"that is long ago", false, 2 * doubtMost, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, old := started(t, 1, func(p *program) error {
					p.serving = true
					if p.w.attempts > 1 {
						p.exitOn(syscall.SIGTERM, 0)
					}
					return nil
				})
				p := w.alive()[0]
				old.all(nil)[0].orderAlone(Order{Timeout: time.Hour})
				w.awaitEntry("TERM", p.pid, 0)
				<-time.After(tt.since)
				records, err := old.Freeze()
				if err != nil {
					t.Fatal(err)
				}
				old.leave()
				w.mu.Lock()
				p.serving = !tt.heard
				w.mu.Unlock()
				next := w.newMaster(1, nil)
				at := time.Now()
				next.Resume(1, Recipe{Revision: 1, Launch: next.cfg.Launch}, travel(t, records), Order{Timeout: time.Hour})
				if tt.at > 0 {
					if e := w.awaitEntry("TERM", p.pid, 1); e.at.Sub(at).Truncate(time.Millisecond) != tt.at.Truncate(time.Millisecond) {
						t.Errorf("told again after %v, want %v", e.at.Sub(at), tt.at)
					}
				}
				<-time.After(time.Minute)
				want := 1
				if tt.at > 0 {
					want = 2
				}
				if n := w.count("TERM", p.pid); n != want {
					t.Errorf("%d stop signals, want %d", n, want)
				}
				next.end()
				old.end()
				w.verify()
			})
		})
	}
}

// Over the channel it is told again at once: only the first order counts.
func TestPool_TellsAWorkerAgainOverItsChannel(t *testing.T) {
	w := newWorld(t)
	w.script = func(p *program) error { return p.speak() }
	old := w.newMaster(1, nil)
	starting := make(chan error, 1)
	go func() { starting <- old.Start(t.Context(), 1) }()
	w.awaitEntry("spawn", 0, 0)
	p := w.alive()[0]
	if err := p.ch.Send(channel.Ready{Version: 1, PID: p.pid, Drain: true}, nil); err != nil {
		t.Fatal(err)
	}
	if err := <-starting; err != nil {
		t.Fatal(err)
	}
	old.all(nil)[0].orderAlone(Order{Timeout: time.Minute, Queue: func() *os.File { return nil }})
	hear := func() {
		t.Helper()
		m, f, err := p.ch.Receive(t.Context())
		if _, ok := m.(channel.Drain); !ok || err != nil || f != nil {
			t.Fatalf("heard %v, %v, %v", m, f, err)
		}
	}
	hear()
	records, err := old.Freeze()
	if err != nil {
		t.Fatal(err)
	}
	old.leave()
	w.mu.Lock()
	w.script = nil
	w.mu.Unlock()
	next := w.newMaster(1, nil)
	next.Resume(1, Recipe{Revision: 1, Launch: next.cfg.Launch}, travel(t, records), Order{Timeout: time.Minute})
	hear()
	if n := w.count("TERM", p.pid); n != 0 {
		t.Errorf("it got %d stop signals", n)
	}
	p.die(exited3)
	next.end()
	old.end()
	w.verify()
}

func TestPool_AHungWorkerIsKilledByTheNextMaster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := started(t, 2, func(p *program) error { // none heeds ABRT
			p.serving = true
			return nil
		})
		hung := w.alive()[0]
		m.Abort(hung.pid, "it hangs")
		aborted := w.awaitEntry("aborted", hung.pid, 0)
		<-time.After(time.Second)
		records, err := m.Freeze()
		if err != nil {
			t.Fatal(err)
		}
		m.leave()
		next := w.newMaster(2, nil)
		next.Adopt(travel(t, records))
		if killed := w.awaitEntry("group KILL", hung.pid, 0); killed.at.Sub(aborted.at) != abortGrace {
			t.Errorf("killed %v after ABRT, want %v", killed.at.Sub(aborted.at), abortGrace)
		}
		next.end()
		m.end()
		w.verify()
	})
}
