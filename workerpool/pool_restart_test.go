package workerpool

import (
	"os"
	"testing"
	"testing/synctest"
	"time"
)

func TestPool_RestartsInTheSlotWithBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const life = time.Second
		w := newWorld(t)
		w.bubble = true
		w.script = func(p *program) error {
			if p.slot != 1 {
				p.serving = true
				return nil
			}
			// All but the first two never become ready: the slot goes on all the same.
			p.serving = w.attempts <= 3
			time.AfterFunc(life, func() { p.die(exited3) })
			return nil
		}
		m := w.newMaster(1, nil)
		if err := m.Start(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		for n, want := range []time.Duration{
			0, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond,
			1600 * time.Millisecond, 3200 * time.Millisecond, 6400 * time.Millisecond, 12800 * time.Millisecond,
			25600 * time.Millisecond, 30 * time.Second, 30 * time.Second,
		} {
			died := w.awaitEntry("exit", 0, n)
			next := w.awaitEntry("spawn", 0, n+2)
			if got := next.at.Sub(died.at); got != want {
				t.Errorf("restart %d came after %v, want %v", n+1, got, want)
			}
			w.mu.Lock()
			if slot := w.programs[next.pid].slot; slot != 1 {
				t.Errorf("restart %d is in slot %d", n+1, slot)
			}
			w.mu.Unlock()
		}
		m.end()
		w.verify()
	})
}

func TestPool_AStableWorkerEarnsARestartAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.bubble = true
		lives := []time.Duration{time.Second, time.Second, time.Second, backoffStable + time.Second, time.Second, time.Hour}
		w.script = func(p *program) error {
			p.serving = true
			time.AfterFunc(lives[min(w.attempts, len(lives))-1], func() { p.die(exited3) })
			return nil
		}
		m := w.newMaster(1, nil)
		if err := m.Start(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		for n, want := range []time.Duration{0, 100 * time.Millisecond, 200 * time.Millisecond, 0, 100 * time.Millisecond} {
			died := w.awaitEntry("exit", 0, n)
			if got := w.awaitEntry("spawn", 0, n+1).at.Sub(died.at); got != want {
				t.Errorf("restart %d came after %v, want %v", n+1, got, want)
			}
		}
		m.end()
		w.verify()
	})
}

// A worker that had been stable earns one restart at once, not an endless series of them when it cannot be started.
func TestPool_BacksOffWhenAStableWorkerCannotBeStartedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.bubble = true
		const failing = 6
		w.script = func(p *program) error {
			if w.attempts > 1 && w.attempts <= 1+failing {
				return os.ErrNotExist
			}
			p.serving = true
			if w.attempts == 1 {
				time.AfterFunc(2*backoffStable, func() { p.die(exited3) })
			}
			return nil
		}
		m := w.newMaster(1, nil)
		if err := m.Start(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		w.awaitEntry("spawn", 0, 1)
		last := w.awaitEntry("exit", 0, 0).at
		for n, want := range []int{0, 100, 200, 400, 800, 1600, 3200} {
			e := w.awaitEntry("attempt", 0, n+1)
			if got := e.at.Sub(last); got != time.Duration(want)*time.Millisecond {
				t.Errorf("attempt %d came after %v, want %v", n+1, got, time.Duration(want)*time.Millisecond)
			}
			last = e.at
		}
		m.end()
		w.verify()
	})
}

func TestPool_KillEndsWhatIsBeingRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.bubble = true
		w.script = func(p *program) error {
			p.serving = w.attempts == 1
			time.AfterFunc(time.Second, func() { p.die(exited3) })
			return nil
		}
		m := w.newMaster(1, nil)
		if err := m.Start(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		w.awaitEntry("exit", 0, 4) // now it waits 800 ms
		at := time.Now()
		m.end()
		if d := time.Since(at); d != 0 {
			t.Errorf("the end took %v", d)
		}
		w.verify()
	})
}
