package workerpool

import (
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"gapless/internal/pidfd"
)

// pids returns the PIDs of the workers that run in a slot, oldest first.
func (w *world) pids(slot int) []int {
	var pids []int
	for _, p := range w.alive() {
		if p.slot == slot {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

func TestPool_ReplacesAWorkerThatServesUntilTheNewOneDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := started(t, 2, func(p *program) error {
			time.AfterFunc(time.Second, p.serve)
			p.exitOn(syscall.SIGTERM, 0)
			return nil
		})
		old := w.pids(1)[0]
		if err := m.Replace(old, Order{Reason: "too large", Timeout: time.Minute}); err != nil {
			t.Fatal(err)
		}
		admitted := w.awaitEntry("admit", 0, 2)
		withdrawn := w.awaitEntry("withdraw", old, 0)
		if withdrawn.at.Before(admitted.at) {
			t.Error("the old worker was withdrawn before the new one was admitted")
		}
		w.awaitEntry("release", old, 0)
		if pids := w.pids(1); len(pids) != 1 || pids[0] != admitted.pid {
			t.Errorf("in the slot run %v, want %d", pids, admitted.pid)
		}
		<-time.After(time.Minute)
		if n := w.count("spawn", 0); n != 3 {
			t.Errorf("%d processes were started, want 3", n)
		}
		for _, s := range m.Slots() {
			if s.Restarts != 0 {
				t.Errorf("a replacement counts as a restart: %+v", s)
			}
		}
		if err := m.Replace(old, Order{}); !errors.Is(err, ErrNoWorker) {
			t.Errorf("replacing one that is gone: %v", err)
		}
		m.end()
		w.verify()
	})
}

func TestPool_AFailedReplacementChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := started(t, 1, func(p *program) error {
			if p.w.attempts > 1 {
				p.exit(exited3)
			}
			p.serving = true
			return nil
		})
		old := w.pids(0)[0]
		var se *StartError
		if err := m.Replace(old, Order{}); !errors.As(err, &se) || se.Status != exited3 {
			t.Errorf("got %v", err)
		}
		synctest.Wait()
		if pids := w.pids(0); len(pids) != 1 || pids[0] != old || w.count("withdraw", 0) != 0 {
			t.Errorf("in the slot run %v, want %d", pids, old)
		}
		m.end()
		w.verify()
	})
}

func TestPool_AWorkerThatDiesWhileItIsReplacedNeedsNoRestart(t *testing.T) {
	for _, tc := range []struct {
		name  string
		fails bool // the replacement, too
		total int  // processes in all
	}{{"and the new one serves", false, 2}, {"and the new one fails", true, 3}} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, m := started(t, 1, func(p *program) error {
					switch {
					case p.w.attempts == 2 && tc.fails:
						time.AfterFunc(2*time.Second, func() { p.die(exited3) })
					case p.w.attempts == 2:
						time.AfterFunc(2*time.Second, p.serve)
					default:
						p.serving = true
					}
					return nil
				})
				old := w.alive()[0]
				time.AfterFunc(time.Second, func() { old.die(exited3) })
				if err := m.Replace(old.pid, Order{}); (err != nil) != tc.fails {
					t.Errorf("got %v", err)
				}
				<-time.After(time.Minute)
				if n := w.count("spawn", 0); n != tc.total {
					t.Errorf("%d processes were started, want %d", n, tc.total)
				}
				if ws := m.Workers(); len(ws) != 1 || ws[0].State != Ready {
					t.Errorf("left are %+v", ws)
				}
				m.end()
				w.verify()
			})
		})
	}
}

func TestPool_OneReplacementAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := started(t, 1, func(p *program) error {
			p.exitOn(syscall.SIGTERM, 0)
			if p.w.attempts == 1 {
				p.serving = true
			} else {
				time.AfterFunc(time.Second, p.serve)
			}
			return nil
		})
		pid := w.pids(0)[0]
		first := make(chan error, 1)
		go func() { first <- m.Replace(pid, Order{}) }()
		synctest.Wait()
		if err := m.Replace(pid, Order{}); !errors.Is(err, ErrSlotBusy) {
			t.Errorf("got %v", err)
		}
		if err := <-first; err != nil {
			t.Error(err)
		}
		m.end()
		w.verify()
	})
}

func TestPool_ReloadsSlotBySlot(t *testing.T) {
	for _, tc := range []struct {
		name          string
		surge         int
		slots         int
		took          time.Duration
		mostAtOneTime int // that start
	}{
		{"one at a time", 1, 3, 3 * time.Second, 1},
		{"two at a time", 2, 4, 2 * time.Second, 2},
		{"all at once", 10, 3, time.Second, 3},
		{"no surge is one", 0, 2, 2 * time.Second, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				most := 0
				w, m := started(t, tc.slots, func(p *program) error {
					n := 1
					for _, other := range p.w.programs {
						if !other.serving {
							n++
						}
					}
					most = max(most, n)
					time.AfterFunc(time.Second-probeEvery(0), p.serve) // between two probes
					p.exitOn(syscall.SIGTERM, 0)
					return nil
				})
				w.mu.Lock()
				most = 0 // of the reload, not of the start
				w.mu.Unlock()
				recipe := Recipe{Revision: 2, Launch: func(slot int, s []Socket) (Launch, error) {
					l, err := m.cfg.Launch(slot, s)
					l.Env = append(l.Env, "REVISION=2")
					return l, err
				}}
				began := time.Now()
				if err := m.Reload(t.Context(), recipe, tc.surge, Order{Timeout: time.Minute}); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took < tc.took || took > tc.took+time.Duration(tc.slots)*50*time.Millisecond {
					t.Errorf("it took %v, want about %v", took, tc.took)
				}
				synctest.Wait()
				for slot := range tc.slots {
					if pids := w.pids(slot); len(pids) != 1 {
						t.Errorf("in slot %d run %v", slot, pids)
					}
				}
				for _, i := range m.Workers() {
					if i.Revision != 2 || i.State != Ready {
						t.Errorf("left is %+v", i)
					}
				}
				w.mu.Lock()
				if most > tc.mostAtOneTime {
					t.Errorf("%d processes started at a time, want at most %d", most, tc.mostAtOneTime)
				}
				w.mu.Unlock()
				// A restart gets the new recipe.
				w.alive()[0].die(exited3)
				e := w.awaitEntry("spawn", 0, 2*tc.slots)
				w.mu.Lock()
				if w.programs[e.pid].env("REVISION") != "2" {
					t.Error("a restart fell back to the old recipe")
				}
				w.mu.Unlock()
				m.end()
				w.verify()
			})
		})
	}
}

func TestPool_ScalesUpAndDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := started(t, 1, nil)
		if err := m.Scale(t.Context(), 4, Order{}); err != nil {
			t.Fatal(err)
		}
		if n := len(m.Workers()); n != 4 {
			t.Errorf("%d workers, want 4", n)
		}
		if err := m.Scale(t.Context(), 2, Order{Reason: "scaled", Timeout: time.Minute}); err != nil {
			t.Fatal(err)
		}
		w.awaitEntry("release", 0, 1)
		<-time.After(time.Hour)
		for slot, want := range []int{1, 1, 0, 0} {
			if pids := w.pids(slot); len(pids) != want {
				t.Errorf("in slot %d run %v, want %d", slot, pids, want)
			}
		}
		if n := w.count("spawn", 0); n != 4 {
			t.Errorf("a worker of a slot that was given up came back: %d processes", n)
		}
		m.end()
		w.verify()
	})
}

func TestPool_AFailedScalingGivesTheNewSlotsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := started(t, 1, func(p *program) error {
			if p.slot == 2 {
				p.exit(exited3)
			}
			p.serving = p.slot != 1 // one is ready, one fails, one is still starting
			p.exitOn(syscall.SIGTERM, 0)
			return nil
		})
		var se *StartError
		if err := m.Scale(t.Context(), 4, Order{Timeout: time.Second}); !errors.As(err, &se) || se.Worker.Slot != 2 {
			t.Errorf("got %v", err)
		}
		<-time.After(time.Hour)
		if ws := m.Workers(); len(ws) != 1 || ws[0].Slot != 0 || ws[0].State != Ready {
			t.Errorf("left are %+v", ws)
		}
		if n := len(m.Slots()); n != 1 {
			t.Errorf("%d slots, want 1", n)
		}
		m.end()
		w.verify()
	})
}

// A slot whose worker is waiting for its restart is given up like any other.
func TestPool_AScaledDownSlotIsNotRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := started(t, 2, func(p *program) error {
			p.serving = true
			if p.slot == 1 {
				time.AfterFunc(time.Second, func() { p.die(pidfd.Status{Known: true, Code: 1}) })
			}
			return nil
		})
		w.awaitEntry("exit", 0, 4)
		synctest.Wait() // now the slot waits 800 ms
		if err := m.Scale(t.Context(), 1, Order{Timeout: time.Minute}); err != nil {
			t.Fatal(err)
		}
		n := w.count("attempt", 0)
		<-time.After(time.Hour)
		if got := w.count("attempt", 0); got != n {
			t.Errorf("%d more processes were started in a slot that was given up", got-n)
		}
		m.end()
		w.verify()
	})
}

// So is one whose worker is just being started: whoever starts it finds that the slot is gone.
func TestPool_AScaledDownSlotEndsTheWorkerUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := started(t, 2, func(p *program) error {
			p.serving = true
			p.exitOn(syscall.SIGTERM, 0)
			return nil
		})
		starting, goOn := make(chan struct{}), make(chan struct{})
		m.gate.sockets = func(int) ([]Socket, error) {
			close(starting)
			<-goOn
			return nil, nil
		}
		for _, p := range w.alive() {
			if p.slot == 1 {
				p.die(exited3)
			}
		}
		<-starting
		if err := m.Scale(t.Context(), 1, Order{Timeout: time.Minute}); err != nil {
			t.Fatal(err)
		}
		close(goOn)
		<-time.After(time.Hour)
		if ws := m.Workers(); len(ws) != 1 || ws[0].Slot != 0 {
			t.Errorf("left are %+v", ws)
		}
		m.end()
		w.verify()
	})
}

// A new worker that was ready and has died before the last of the others was: its predecessor has lost its share as well, so
// it goes, and the slot gets another one.
func TestPool_AReloadOfAllRestartsAWorkerThatDiedBeforeItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var first bool
		w, m := started(t, 2, func(p *program) error {
			p.exitOn(syscall.SIGTERM, 0)
			p.serving = p.env("REVISION") != "2"
			if p.serving {
				return nil
			}
			took := 2 * time.Second
			if p.slot == 0 {
				took = 0
				if !first {
					first = true
					time.AfterFunc(time.Second, func() { p.die(exited3) })
				}
			}
			time.AfterFunc(took, p.serve)
			return nil
		})
		recipe := Recipe{Revision: 2, Launch: func(slot int, s []Socket) (Launch, error) {
			l, err := m.cfg.Launch(slot, s)
			l.Env = append(l.Env, "REVISION=2")
			return l, err
		}}
		if err := m.ReloadAll(t.Context(), recipe, func() error { return nil }, Order{Timeout: time.Minute}); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Minute)
		for slot := range 2 {
			if pids := w.pids(slot); len(pids) != 1 {
				t.Errorf("in slot %d run %v", slot, pids)
			}
		}
		for _, i := range m.Workers() {
			if i.Revision != 2 || i.State != Ready {
				t.Errorf("left is %+v", i)
			}
		}
		m.end()
		w.verify()
	})
}
