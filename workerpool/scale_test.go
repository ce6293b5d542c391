package workerpool

import (
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// serves is a program that is ready at once and ends on TERM.
func serves(p *program) error {
	p.serving = true
	p.exitOn(syscall.SIGTERM, 0)
	return nil
}

func TestPool_RefusesToScaleDownToWorkersThatDoNotServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := false
		w, m := started(t, 2, func(p *program) error {
			if broken {
				return syscall.ENOENT
			}
			return serves(p)
		})
		broken = true
		first, second := w.pids(0)[0], w.pids(1)[0]
		w.programs[first].die(exited3)
		synctest.Wait()
		if err := m.Scale(t.Context(), 1, Order{Timeout: time.Minute}); !errors.Is(err, ErrNoneReady) {
			t.Fatalf("got %v, want %v", err, ErrNoneReady)
		}
		if n := len(m.Slots()); n != 2 || w.count("withdraw", second) != 0 {
			t.Errorf("%d slots, %d withdrawals of the only worker that serves", n, w.count("withdraw", second))
		}
		w.mu.Lock()
		broken = false
		w.mu.Unlock()
		<-time.After(time.Minute)
		if err := m.Scale(t.Context(), 1, Order{Timeout: time.Minute}); err != nil {
			t.Error(err)
		}
		if n := len(m.Slots()); n != 1 || w.count("TERM", second) != 1 {
			t.Errorf("%d slots, %d stop signals", n, w.count("TERM", second))
		}
		m.end()
		w.verify()
	})
}

// A scaling fails just when the one old worker has died: the new ones that serve go on until that one is replaced.
func TestPool_AFailedScalingLeavesWhoeverServesAlone(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(m *master)
	}{
		{"until another one serves", nil},
		{"or everything stops", func(m *master) { m.DrainAll(Order{Stop: true, Timeout: time.Minute}) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, m := started(t, 1, func(p *program) error {
					p.exitOn(syscall.SIGTERM, 0)
					switch {
					case p.slot == 2:
						time.AfterFunc(time.Second, func() { p.die(exited3) })
					case p.slot == 0 && p.w.attempts > 1:
						time.AfterFunc(10*time.Second, p.serve)
					default:
						p.serving = true
					}
					return nil
				})
				old := w.alive()[0]
				time.AfterFunc(time.Second-time.Millisecond, func() { old.die(exited3) })
				if err := m.Scale(t.Context(), 3, Order{Timeout: time.Minute}); err == nil {
					t.Fatal("the scaling has not failed")
				}
				synctest.Wait()
				surplus := w.pids(1)[0]
				if n := w.count("withdraw", surplus); n != 0 {
					t.Fatal("the only worker that serves was withdrawn")
				}
				if tc.end != nil {
					at := time.Now()
					tc.end(m)
					if e := w.awaitEntry("TERM", surplus, 0); !e.at.Equal(at) {
						t.Errorf("told %v later", e.at.Sub(at))
					}
				} else {
					withdrawn, admitted := w.awaitEntry("withdraw", surplus, 0), w.awaitEntry("admit", w.pids(0)[0], 0)
					if withdrawn.at.Before(admitted.at) {
						t.Error("it was withdrawn before the other one was admitted")
					}
				}
				w.awaitEntry("release", surplus, 0)
				m.end()
				w.verify()
			})
		})
	}
}

// The new generation's only worker dies before the old one has been told.
func TestPool_TheOldGenerationGoesWhenANewOneServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, old := started(t, 1, serves)
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
		first, second := w.alive()[0], w.alive()[1]
		second.die(exited3)
		synctest.Wait()
		next.DrainOthers(Order{Timeout: time.Minute})
		synctest.Wait()
		if n := w.count("withdraw", first.pid); n != 0 {
			t.Error("the only worker left was withdrawn")
		}
		w.awaitEntry("TERM", first.pid, 0)
		if w.count("admit", 0) != 3 {
			t.Error("it was told before another one served")
		}
		next.end()
		old.end()
		w.verify()
	})
}
