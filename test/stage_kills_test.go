//go:build linux

package test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"gapless/internal/control"
)

// phases are where a generation beside the one in charge may be when something dies.
var phases = []struct {
	name string
	to   func(s *server) // brings generation 2 there
}{
	{"without a share", func(s *server) { s.verb("upgrade", "--stage").demand(s.t, 0) }},
	{"after its share was taken back", func(s *server) {
		s.verb("upgrade", "--stage").demand(s.t, 0)
		s.verb("shift", "40").demand(s.t, 0)
		s.verb("shift", "0").demand(s.t, 0)
	}},
	{"with a share", func(s *server) {
		s.verb("upgrade", "--stage").demand(s.t, 0)
		s.verb("shift", "40").demand(s.t, 0)
	}},
	{"in the window", func(s *server) { s.verb("upgrade", "--keep", "1h").demand(s.t, 0) }},
}

// beside is the PID of the master of generation 2.
func (s *server) beside() int {
	s.t.Helper()
	for _, g := range s.status().Generations {
		if g.Generation == 2 && g.MasterPID != 0 {
			return g.MasterPID
		}
	}
	s.t.Fatal("the status names no master of generation 2")
	return 0
}

// wentBack demands that generation 1 has everything, that nothing of generation 2 is left, and that the status tells so.
func (s *server) wentBack(workers int, reason string) {
	s.t.Helper()
	st := s.becomes("generation 1 alone serves", func(st control.Status) bool {
		return len(st.Generations) == 1 && st.Generations[0].Generation == 1 && st.Generations[0].State == control.GenerationServing &&
			(st.State == control.StateServing || st.State == control.StateDegraded) && inState(own(st), "ready") == workers
	})
	s.settled(1, workers)
	s.gets(1, 100)
	if l := st.LastUpgrade; l == nil || l.OK || l.Generation != 2 || !strings.Contains(l.Reason, reason) {
		s.t.Errorf("the last upgrade is told as %+v, want %q", l, reason)
	}
	s.truth(s.status())
	s.verb("upgrade").demand(s.t, 0) // its number is not given again
	s.settled(3, workers)
}

// Whatever is killed beside the generation in charge, and even that one's master: nobody notices, and what had clients drains.
func TestStageKills_Masters(t *testing.T) {
	t.Parallel()
	for n, victims := range []string{"the staged master", "the master in charge", "both masters"} {
		for i, phase := range phases {
			if !soak && (i < n || i == 1) { // the more die, the less the first phases differ
				continue
			}
			t.Run(victims+" "+phase.name, func(t *testing.T) {
				s := start(t, options{})
				p := stageLoad(s, true)
				p.streams[0].Rate /= 2 // many die here, and much starts
				r := p.under(t, 1, func(int) {
					phase.to(s)
					pause(slower(200 * time.Millisecond))
					staged, first := s.beside(), s.first
					switch victims {
					case "the staged master":
						kill(staged)
						s.wentBack(2, "signal: killed")
					case "the master in charge":
						kill(first)
						s.replaced(first)
						s.wentBack(2, "the master was killed meanwhile")
					default:
						kill(staged)
						kill(first)
						s.replaced(first)
						s.wentBack(2, "")
					}
				})
				r.untouched(t, p)
				s.stop()
			})
		}
	}
}

// parentPhases are where a generation beside the one in charge may be when the parent dies.
var parentPhases = []struct {
	name string
	to   func(s *server)
}{
	{"while it starts", func(s *server) {
		s.verbLater("upgrade", "--stage")
		s.masterOf(2)
	}},
	phases[0],
	{"with half", func(s *server) {
		s.verb("upgrade", "--stage").demand(s.t, 0)
		s.verb("shift", "50").demand(s.t, 0)
	}},
	phases[3],
	{"while it is promoted", func(s *server) {
		s.verb("upgrade", "--stage").demand(s.t, 0)
		s.verbLater("promote")
		pause(rand.N(slower(40 * time.Millisecond)))
	}},
	{"while it is aborted", func(s *server) {
		s.verb("upgrade", "--stage").demand(s.t, 0)
		s.verb("shift", "50").demand(s.t, 0)
		s.verbLater("abort")
		pause(rand.N(slower(40 * time.Millisecond)))
	}},
	{"while it is rolled back", func(s *server) {
		s.verb("upgrade", "--keep", "1h").demand(s.t, 0)
		s.verbLater("rollback")
		pause(rand.N(slower(40 * time.Millisecond)))
	}},
}

// A killed parent takes both generations with it, in order: within two seconds nobody answers, what was under way is
// finished by whoever had it, nothing is left, and a fresh start serves at once. If all masters die with it, there is nobody to
// shut the address down but the workers, which end by themselves.
func TestStageKills_Parent(t *testing.T) {
	for _, victims := range []string{"the parent", "the parent and the staged master", "the parent and both masters"} {
		for _, phase := range parentPhases {
			if !soak && victims != "the parent" && phase.name != "with half" {
				continue
			}
			for i := range counted(1, 5) {
				t.Run(fmt.Sprintf("%s %s %d", victims, phase.name, i), func(t *testing.T) {
					t.Parallel()
					s := start(t, options{})
					slow := s.ask("/slow?ms=3000")
					s.inFlight(slow)
					phase.to(s)
					masters := s.masters()
					kill(s.pid())
					for _, m := range masters {
						if victims == "the parent and both masters" || victims == "the parent and the staged master" && m.PID != s.first {
							kill(m.PID)
						}
					}
					<-s.exited
					died := time.Now()
					eventually(t, patience, "nobody answers", func() bool { return !serves(s.addr) })
					if took := time.Since(died); took > slower(2*time.Second) {
						t.Errorf("somebody answered for %v", took)
					}
					eventually(t, patience, "the address is free", func() bool {
						c, err := net.DialTimeout("tcp", s.addr, time.Second)
						if err == nil {
							_ = c.Close()
						}
						return errors.Is(err, syscall.ECONNREFUSED)
					})
					_, port, _ := net.SplitHostPort(s.addr)
					next := start(t, options{flags: []string{"--listen", "127.0.0.1:" + port}})
					next.addr = s.addr
					next.get("/").generation(1)
					if r := slow.answer(t); r.status != http.StatusOK {
						t.Errorf("what was under way got status %d", r.status)
					}
					eventually(t, patience, "the old ones have ended", func() bool { return len(leftovers(s.mark)) == 0 })
					next.stop()
				})
			}
		}
	}
}

// Masters that die while it is being decided who serves: one generation has everything, nothing of the other is left, and the
// status tells which. No client notices, as no worker dies before it has drained.
func TestStageKills_MastersAtATurn(t *testing.T) {
	t.Parallel()
	for n, victims := range []string{"the staged master", "the master in charge", "both masters"} {
		for i, phase := range parentPhases[len(parentPhases)-3:] {
			if !soak && i != n {
				continue
			}
			t.Run(victims+" "+phase.name, func(t *testing.T) {
				for range counted(1, 5) {
					s := start(t, options{})
					p := stageLoad(s, true)
					p.streams[0].Rate /= 2
					r := p.under(t, 1, func(int) {
						phase.to(s)
						masters := s.masters() // one of them, if it is over already
						for _, m := range masters {
							if victims == "both masters" || (m.PID == s.first) == (victims == "the master in charge") {
								kill(m.PID)
							}
						}
						st := s.becomes("one generation alone serves", func(st control.Status) bool {
							return len(st.Generations) == 1 && st.Staged == nil && (st.State == control.StateServing || st.State == control.StateDegraded) &&
								inState(own(st), "ready") == 2
						})
						generation := st.Generations[0].Generation
						s.settled(generation, 2)
						s.gets(generation, 100)
						s.truth(s.status())
						s.verb("upgrade", "--keep", "0s").demand(t, 0)
						s.settled(3, 2)
					})
					r.untouched(t, p)
					s.stop()
				}
			})
		}
	}
}

// A staged worker that dies ends the stage; in the window the first death is a restart, and the second of a slot ends it.
func TestStageKills_Worker(t *testing.T) {
	for _, phase := range phases {
		t.Run(phase.name, func(t *testing.T) {
			t.Parallel()
			s := start(t, options{})
			phase.to(s)
			victim := s.worker(2, 1)
			signal(t, victim.PID, syscall.SIGKILL)
			if phase.name == "in the window" {
				eventually(t, patience, "it is restarted", func() bool {
					return len(s.out.find(func(e event) bool {
						return e.Msg == "Worker is ready" && e.Generation == 2 && e.Worker == 1 && e.PID != victim.PID
					})) > 0
				})
				s.gets(2, 100)
				s.staged(2, control.GenerationWindow, 100)
				signal(t, s.worker(2, 1).PID, syscall.SIGKILL)
			}
			s.wentBack(2, "worker 1")
			s.stop()
		})
	}
}

// With one worker, there is nobody left to take what the window gives: it ends at once.
func TestStageKills_OnlyWorkerInTheWindow(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"-w", "1", "--keep", "1h"}})
	s.verb("upgrade").demand(t, 0)
	signal(t, s.worker(2, 0).PID, syscall.SIGKILL)
	s.wentBack2(1)
	s.stop()
}

// wentBack2 is wentBack where upgrades have a window.
func (s *server) wentBack2(workers int) {
	s.t.Helper()
	s.becomes("generation 1 alone serves", func(st control.Status) bool {
		return st.State == control.StateServing && len(st.Generations) == 1 && st.Generations[0].Generation == 1
	})
	s.settled(1, workers)
	s.gets(1, 100)
}

// A release that crashes after it was ready is rolled back by itself within the window.
func TestStage_CrashLoopInTheWindowRollsBack(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	s := start(t, options{command: []string{a.path}, flags: []string{"--keep", "1h", "--log-prefix"}})
	a.role("crashes-after-ready")
	s.signal(syscall.SIGUSR2)
	e := s.outcome(2)
	if !aborted(2)(e) || !strings.Contains(e.Reason, "exit status 7") {
		t.Errorf("the outcome is %+v", e)
	}
	s.wentBack2(2)
	a.good()
	s.verb("upgrade").demand(t, 0)
	s.staged(3, control.GenerationWindow, 100)
	s.verb("promote").demand(t, 0)
	s.settled(3, 2)
	s.stop()
}

// With shared lanes a worker that dies leaves the lane to the others of its generation.
func TestStageKills_WorkerOfASharedLaneInTheWindow(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"-w", "3", "--accept", "shared", "--keep", "1h"}})
	s.verb("upgrade").demand(t, 0)
	victim := s.worker(2, 1)
	signal(t, victim.PID, syscall.SIGKILL)
	s.gets(2, 100)
	eventually(t, patience, "it is restarted", func() bool {
		return len(s.out.find(func(e event) bool {
			return e.Msg == "Worker is ready" && e.Generation == 2 && e.Worker == 1 && e.PID != victim.PID
		})) > 0
	})
	s.staged(2, control.GenerationWindow, 100)
	s.verb("promote").demand(t, 0)
	s.settled(2, 3)
	s.stop()
}

// A staged worker that hangs ends the stage, and no client waits for it longer than for any that hangs.
func TestStage_HungWorkerEndsIt(t *testing.T) {
	for _, percent := range []int{30, 100} {
		t.Run(fmt.Sprintf("%d %%", percent), func(t *testing.T) {
			t.Parallel()
			s := start(t, options{flags: []string{"--watchdog", slower(time.Second).String()}})
			s.verb("upgrade", "--stage").demand(t, 0)
			s.verb("shift", fmt.Sprint(percent)).demand(t, 0)
			hung := s.worker(2, 0)
			halt(t, hung.PID)
			var waiting []*later
			eventually(t, patience, "the stage is aborted", func() bool {
				if len(waiting) < 60 {
					waiting = append(waiting, s.ask("/"))
				}
				pause(5 * time.Millisecond)
				return len(s.out.find(aborted(2))) > 0
			})
			if e := s.outcome(2); !strings.Contains(e.Reason, "has accepted none") {
				t.Errorf("the reason is %q", e.Reason)
			}
			// The kernel ends a stopped process whose master goes; what had waited for it is passed on.
			for _, l := range waiting {
				l.answer(t)
			}
			s.settled(1, 2)
			s.stop()
		})
	}
}
