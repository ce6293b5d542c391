//go:build linux

package test

import (
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// masterOf returns the PID of the master of a generation from 2 on that is starting, or of the one in charge.
func (s *server) masterOf(generation int) int {
	s.t.Helper()
	var pid int
	eventually(s.t, patience, fmt.Sprintf("master %d has told its PID", generation), func() bool {
		if generation == 1 {
			pid = s.first
		} else {
			pid = s.preparing(generation)
		}
		return pid != 0
	})
	return pid
}

// preparing is the PID that the master of a generation announced, 0 if it has not yet.
func (s *server) preparing(generation int) int {
	pid, current := 0, 0
	for _, e := range s.out.find(func(event) bool { return true }) {
		if e.Msg == "Upgrade started" {
			current = e.To
		}
		if current == generation && e.Phase == "preparing" && e.PID != 0 {
			pid = e.PID
		}
	}
	return pid
}

func TestKill_WorkerIsRestarted(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	first := s.worker(1, 1)
	signal(t, first.PID, syscall.SIGKILL)
	eventually(t, patience, "another worker is ready in slot 1", func() bool {
		return len(s.out.find(func(e event) bool { return e.Msg == "Worker is ready" && e.Worker == 1 && e.PID != first.PID })) > 0
	})
	second := s.worker(1, 1)
	if second.PID == first.PID {
		t.Fatal("the killed worker lives")
	}
	for range 20 {
		s.get("/").generation(1)
	}
	s.upgrade(2)
	s.settled(2, 2)
	s.stop()
}

// A killed master is replaced, and what is in flight is answered.
func TestKill_MasterInCharge(t *testing.T) {
	for _, upgrades := range []int{0, 2} {
		t.Run(fmt.Sprintf("after %d upgrades", upgrades), func(t *testing.T) {
			t.Parallel()
			s := start(t, options{})
			for i := range upgrades {
				s.upgrade(i + 2)
			}
			s.settled(upgrades+1, 2)
			slow := s.ask("/slow?ms=700")
			s.inFlight(slow)
			s.killMaster()
			if r := slow.answer(t); r.status != http.StatusOK {
				t.Errorf("status %d", r.status)
			}
			s.settled(upgrades+1, 2)
			s.stop()
		})
	}
}

// Masters are killed in each phase of an upgrade.
func TestKill_DuringAnUpgrade(t *testing.T) {
	steps := func(e event) bool { return e.Msg == "Running previous step" && e.Generation == 2 }
	phase := func(p string) func(event) bool {
		return func(e event) bool { return e.Msg == "Upgrade" && e.Phase == p }
	}
	tests := []struct {
		name   string
		at     func(event) bool
		victim int // generation
	}{
		{"the old one while steps run", steps, 1},
		{"the new one while steps run", steps, 2},
		{"the old one while workers start", phase("starting workers"), 1},
		{"the new one while workers start", phase("starting workers"), 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := newApp(t)
			// Generation 1 is not slowed down by what generation 2 does.
			s := start(t, options{command: []string{a.path}, flags: []string{"--before-start", "test $GAPLESS_GENERATION = 1 || sleep 0.4"}})
			a.becomes("/bin/sh -c 'sleep 0.4; exec " + built.gapless + " app'")
			s.signal(syscall.SIGUSR2)
			s.await("the moment to kill", tt.at)
			signal(t, s.masterOf(tt.victim), syscall.SIGKILL)
			e := s.outcome(2)
			if !aborted(2)(e) || e.Reason == "" {
				t.Errorf("the upgrade whose master was killed was not aborted with a reason: %+v", e)
			}
			s.settled(1, 2)
			s.get("/").generation(1)
			a.good()
			s.upgrade(3)
			s.settled(3, 2)
			s.stop()
		})
	}
}

// lastCharge is the generation that took charge last.
func (s *server) lastCharge() int {
	last := 1
	for _, e := range s.out.find(tookCharge) {
		last = max(last, e.Generation)
	}
	return last
}

// pause waits; it chooses a moment at random, and waits for nothing.
func pause(d time.Duration) {
	if d > 0 {
		<-time.After(d)
	}
}

// A worker that does not heed the stop signal is killed when its time is over, and so is what it has started.
func TestDrain_IsKilledWhenItsTimeIsOver(t *testing.T) {
	for _, name := range []string{"ignores-term", "forks-grandchild"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, options{flags: []string{"--drain-timeout", "700ms"}, command: role(name)})
			s.upgrade(2)
			if name == "ignores-term" {
				s.await("a worker is killed", func(e event) bool { return e.Msg == "Worker killed" && strings.Contains(e.Reason, "drain") })
			}
			eventually(t, patience, "generation 1 is gone", func() bool { return len(s.workers(1)) == 0 })
			s.signal(syscall.SIGTERM)
			s.exits(0)
		})
	}
}

// What a worker has started in a process group of its own lives on with the worker's generation gone, but not with
// gapless gone.
func TestStop_EndsWhatWorkersHaveStarted(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"--drain-timeout", "700ms"}, command: role("forks-grandchild", "E2E_OWN_GROUP=1")})
	s.upgrade(2)
	s.stop()
}

// A shell that dies of the stop signal takes nothing with it: the server that it has started drains.
func TestDrain_WrapperThatDiesOfTheStopSignal(t *testing.T) {
	t.Parallel()
	s := start(t, options{command: []string{"/bin/sh", "-c", roleVariable + "=shutdown " + built.self + " & wait"}})
	slow := s.ask("/?ms=1000")
	s.inFlight(slow)
	s.upgrade(2)
	if r := slow.answer(t); !strings.Contains(r.body, "generation 1 ") {
		t.Errorf("answer %q", r.body)
	}
	eventually(t, patience, "generation 1 is gone", func() bool { return len(s.workers(1)) == 0 })
	s.get("/").generation(2)
	s.stop()
}
