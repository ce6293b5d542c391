package workerpool

import (
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"gapless/internal/pidfd"
)

// started returns a world in a synctest bubble with a pool of n ready workers.
func started(t *testing.T, n int, script func(p *program) error) (*world, *master) {
	t.Helper()
	w := newWorld(t)
	w.bubble = true
	w.script = script
	m := w.newMaster(1, nil)
	if err := m.Start(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	return w, m
}

// stubborn serves and ignores TERM.
func stubborn(p *program) error { p.serving = true; return nil }

func TestPool_DrainsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := started(t, 1, func(p *program) error {
			p.serving = true
			p.on[syscall.SIGTERM] = func(p *program) {
				time.AfterFunc(3*time.Second, func() { p.die(pidfd.Status{Known: true}) })
			}
			return nil
		})
		settled := make(chan struct{})
		m.gate.withdraw = func(i Info) {
			if i.State != Draining || i.Reason != "the test ends" || i.Told {
				t.Errorf("withdrawn as %+v", i)
			}
			<-settled
		}
		pid := w.alive()[0].pid
		m.DrainAll(Order{Reason: "the test ends", Stop: true, Timeout: 30 * time.Second})
		w.awaitEntry("withdraw", pid, 0)
		synctest.Wait()
		if n := w.count("TERM", pid); n != 0 {
			t.Error("the stop signal came before the worker had been withdrawn")
		}
		time.AfterFunc(time.Second, func() { close(settled) })
		m.Wait()
		<-m.Empty()
		want := []string{"attempt", "spawn", "admit", "withdraw", "withdrawn", "TERM", "exit", "release", "was draining"}
		if got := w.about(pid); !slices.Equal(got, want) {
			t.Errorf("happened %q, want %q", got, want)
		}
		if d := w.awaitEntry("exit", pid, 0).at.Sub(w.awaitEntry("TERM", pid, 0).at); d != 3*time.Second {
			t.Errorf("it had %v", d)
		}
		m.end()
		w.verify()
	})
}

func TestPool_KillsExactlyAtTheEndOfTheDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := started(t, 2, stubborn)
		m.gate.withdraw = func(i Info) { <-time.After(time.Duration(i.Slot+1) * time.Second) }
		began := time.Now()
		m.DrainAll(Order{Stop: true, Timeout: 30 * time.Second})
		m.Wait()
		w.mu.Lock()
		kills, terms := w.entries("group KILL", 0), w.entries("TERM", 0)
		w.mu.Unlock()
		if len(kills) != 2 || len(terms) != 2 {
			t.Fatalf("%d KILL and %d TERM, want 2 of each", len(kills), len(terms))
		}
		for i := range kills {
			if d := kills[i].at.Sub(terms[i].at); d != 30*time.Second || kills[i].pid != terms[i].pid {
				t.Errorf("KILL came %v after the stop signal, want 30 s", d)
			}
			if d := terms[i].at.Sub(began); d != time.Duration(i+1)*time.Second {
				t.Errorf("TERM came after %v", d)
			}
		}
		m.end()
		w.verify()
	})
}

func TestPool_WithoutATimeoutADrainMayLastForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := started(t, 1, stubborn)
		m.DrainAll(Order{})
		<-time.After(100 * time.Hour)
		if len(w.alive()) != 1 {
			t.Error("the worker is gone")
		}
		m.end()
		w.verify()
	})
}

func TestPool_DrainAllTwiceSignalsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := started(t, 3, stubborn)
		order := Order{Stop: true, Timeout: 10 * time.Second}
		m.DrainAll(order)
		m.DrainAll(order)
		synctest.Wait()
		m.DrainAll(order)
		m.Wait()
		for _, what := range []string{"withdraw", "TERM", "group KILL"} {
			if n := w.count(what, 0); n != 3 {
				t.Errorf("%d times %s for 3 workers", n, what)
			}
		}
		m.end()
		w.verify()
	})
}

func TestPool_KillsWhatAWorkerLeavesInItsGroup(t *testing.T) {
	for _, tc := range []struct {
		name    string
		members func(p *program, sig syscall.Signal)
		timeout time.Duration
		want    []string      // after the leader's exit
		took    time.Duration // from the leader's exit to the release; at most a poll more
	}{
		{name: "they drain", timeout: 30 * time.Second, took: 5 * time.Second, want: []string{"group TERM"},
			members: func(p *program, sig syscall.Signal) {
				if sig == syscall.SIGTERM {
					time.AfterFunc(5*time.Second, func() { p.w.mu.Lock(); p.members = 0; p.w.mu.Unlock() })
				}
			}},
		{name: "they ignore it", timeout: 30 * time.Second, took: 30 * time.Second, want: []string{"group TERM", "group KILL"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, m := started(t, 1, func(p *program) error {
					p.serving, p.members, p.onGroup = true, 2, tc.members
					p.exitOn(syscall.SIGTERM, 143)
					return nil
				})
				pid := w.alive()[0].pid
				m.DrainAll(Order{Stop: true, Timeout: tc.timeout})
				m.Wait()
				about := w.about(pid)
				about = about[slices.Index(about, "exit")+1:]
				if want := append(slices.Clone(tc.want), "release", "was draining"); !slices.Equal(about, want) {
					t.Errorf("after the exit came %q, want %q", about, want)
				}
				d := w.awaitEntry("release", pid, 0).at.Sub(w.awaitEntry("exit", pid, 0).at)
				if d < tc.took || d > tc.took+groupPoll {
					t.Errorf("they had %v, want %v", d, tc.took)
				}
				m.end()
				w.verify()
			})
		})
	}
}

func TestPool_KillEndsTheWaitForAGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := started(t, 1, func(p *program) error {
			p.serving, p.members = true, 1
			p.exitOn(syscall.SIGTERM, 0)
			return nil
		})
		m.DrainAll(Order{})
		w.awaitEntry("group TERM", 0, 0)
		m.end()
		w.verify()
	})
}

// The leader may be a wrapper that dies while its connections settle: what it leaves has no more time than it had.
func TestPool_LeftoversOfAWorkerThatDiesWhileSettlingAreKilledInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := started(t, 1, func(p *program) error {
			p.serving, p.members = true, 1
			return nil
		})
		m.gate.withdraw = func(Info) { <-time.After(2 * time.Second) }
		p := w.alive()[0]
		m.DrainAll(Order{Stop: true, Timeout: 30 * time.Second})
		w.awaitEntry("withdraw", p.pid, 0)
		p.die(exited3)
		select {
		case <-m.Empty():
		case <-time.After(time.Minute):
			t.Error("the rest of its group still runs a minute later")
		}
		m.end()
		w.verify()
	})
}

func TestPool_CrashEndsTheGroupAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := started(t, 1, func(p *program) error {
			p.serving, p.members = true, 3
			return nil
		})
		p := w.alive()[0]
		p.die(pidfd.Status{Known: true, Signal: syscall.SIGSEGV})
		w.awaitEntry("spawn", 0, 1)
		want := []string{"attempt", "spawn", "admit", "exit", "group KILL", "release", "was ready"}
		if got := w.about(p.pid); !slices.Equal(got, want) {
			t.Errorf("happened %q, want %q", got, want)
		}
		m.end()
		w.verify()
	})
}

func TestPool_KillGoesToTheGroupAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := started(t, 2, stubborn)
		began := time.Now()
		m.Kill("a second signal")
		m.Wait()
		if d := time.Since(began); d != 0 {
			t.Errorf("it took %v", d)
		}
		if w.count("group KILL", 0) < 2 || w.count("TERM", 0) != 0 || w.count("was killing", 0) != 2 {
			t.Error(w.story())
		}
		m.end()
		w.verify()
	})
}

func TestPool_SignalAllReachesThoseThatWantIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := started(t, 3, stubborn)
		wanted := w.alive()[1].pid
		m.SignalAll(syscall.SIGUSR1, func(pid int) bool { return pid == wanted })
		m.SignalAll(syscall.SIGUSR2, nil)
		for _, p := range w.alive() {
			w.mu.Lock()
			if want := map[bool]int{true: 1}[p.pid == wanted]; p.signals[syscall.SIGUSR1] != want || p.signals[syscall.SIGUSR2] != 1 {
				t.Errorf("process %d got %v", p.pid, p.signals)
			}
			w.mu.Unlock()
		}
		m.end()
		w.verify()
	})
}

func TestPool_HelpersDrainAndAreNotRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := started(t, 1, nil)
		if err := m.StartHelper("relay", Launch{Path: "/bin/relay"}); err != nil {
			t.Fatal(err)
		}
		helper := func(i Info) bool { return i.Role == "relay" }
		if ws := m.all(helper); len(ws) != 1 || ws[0].snapshot().State != Ready || ws[0].snapshot().Slot != -1 {
			t.Fatalf("helpers: %v", ws)
		}
		p := w.alive()[1]
		p.die(exited3)
		synctest.Wait()
		if n := w.count("spawn", 0); n != 2 || len(m.all(helper)) != 0 {
			t.Errorf("%d processes were started, want 2", n)
		}
		if err := m.StartHelper("relay", Launch{Path: "/bin/relay"}); err != nil {
			t.Fatal(err)
		}
		m.DrainAll(Order{Stop: true})
		m.Wait()
		if n := w.count("TERM", 0); n != 2 {
			t.Errorf("%d TERM, want 2", n)
		}
		m.end()
		w.verify()
	})
}
