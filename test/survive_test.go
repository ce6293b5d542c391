//go:build linux

package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// replaced waits until another master than the dead one is in charge.
func (s *server) replaced(dead int) int {
	s.t.Helper()
	var now int
	eventually(s.t, patience, fmt.Sprintf("another master is in charge instead of %d", dead), func() bool {
		if s.gone() {
			return true
		}
		for _, e := range s.out.find(tookCharge) {
			now = e.PID
		}
		ms := s.masters()
		return now != dead && len(ms) == 1 && ms[0].PID == now
	})
	if s.gone() {
		s.t.Fatalf("gapless has ended (%v) when its master was killed", s.cmd.ProcessState)
	}
	return now
}

const tookPlace = "Took the place of a master that died; its workers serve on"

// inCharge is the PID of the one master.
func (s *server) inCharge() int {
	s.t.Helper()
	var ms []proc
	eventually(s.t, patience, "one master", func() bool {
		ms = s.masters()
		return len(ms) == 1 || s.gone()
	})
	if len(ms) != 1 {
		s.t.Fatalf("gapless has ended: %v", s.cmd.ProcessState)
	}
	return ms[0].PID
}

// killMaster kills the master in charge and waits for the next one.
func (s *server) killMaster() int {
	s.t.Helper()
	dead := s.inCharge()
	signal(s.t, dead, syscall.SIGKILL)
	return s.replaced(dead)
}

// open is how many descriptors a process has.
func open(t testing.TB, pid int) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// inARow is how many kills one gapless gets in a short time: it pauses ever longer between one master and the next.
const inARow = 5

// rounds runs n kills, inARow to each gapless.
func rounds(t *testing.T, reduced, full int, round func(t *testing.T, kills int)) {
	for i := range counted(reduced, full) / inARow {
		t.Run(strconv.Itoa(i), func(t *testing.T) { round(t, inARow) })
	}
}

// A killed master is nobody's loss: the workers are the same ones, and all that gapless does goes on.
func TestSurvive_KilledMasterUnderLoad(t *testing.T) { rounds(t, 5, 20, killUnderLoad) }

func killUnderLoad(t *testing.T, kills int) {
	s := start(t, options{flags: []string{"-w", "3"}})
	p := plan{addr: s.addr, streams: postStreams("/echo", requestsPerSecond()), every: slower(200 * time.Millisecond), tail: slower(500 * time.Millisecond)}
	before := s.workers(1)
	var after int
	r := p.under(t, kills, func(i int) {
		pause(time.Duration(rand.Int64N(int64(100 * time.Millisecond))))
		s.killMaster()
		if i == 1 {
			after = open(t, s.pid())
		}
	})
	r.untouched(t, p)
	if now := open(t, s.pid()); now > after+2 { // a request to the control socket may be under way
		t.Errorf("the parent had %d descriptors after two kills and has %d now", after, now)
	}
	now := s.workers(1)
	if !slices.Equal(pids(now), pids(before)) {
		t.Errorf("workers\n%s became\n%s", list(before), list(now))
	}
	s.upgrade(2)
	s.settled(2, 3)
	s.stop()
}

// Upgrades and kills in turn: the generations go on, and what the parent keeps does not grow.
func TestSurvive_KillsBetweenUpgrades(t *testing.T) {
	s := start(t, options{})
	p := plan{addr: s.addr, streams: postStreams("/echo", requestsPerSecond()/2), every: slower(100 * time.Millisecond), tail: slower(500 * time.Millisecond)}
	n := counted(5, 50)
	var after int
	r := p.under(t, n, func(i int) {
		s.upgrade(i + 2)
		s.killMaster()
		s.settled(i+2, 2)
		if i == 1 {
			after = open(t, s.pid())
		}
	})
	r.untouched(t, p)
	const spare = 4 // lanes; see TestUpgrade_ManyInARowLeaveNothing
	if now := open(t, s.pid()); now > after+spare {
		t.Errorf("the parent had %d descriptors after two rounds and has %d now", after, now)
	}
	s.stop()
}

// Of a worker that is killed with the master, only what it was answering is lost: its place is taken.
func TestSurvive_KilledMasterAndWorker(t *testing.T) { rounds(t, 5, 20, killWithWorker) }

func killWithWorker(t *testing.T, kills int) {
	s := start(t, options{flags: []string{"-w", "3"}})
	for range kills {
		s.settled(1, 3) // one that has just become its command may not be seen as a worker for a moment
		victim, dead := s.workers(1)[rand.IntN(3)].PID, s.inCharge()
		kill(dead)
		kill(victim)
		s.replaced(dead)
		eventually(t, patience, "three workers again", func() bool {
			ws := s.workers(1)
			return len(ws) == 3 && !slices.Contains(pids(ws), victim)
		})
		for range 12 {
			s.get("/").generation(1)
		}
	}
	s.settled(1, 3)
	s.upgrade(2)
	s.settled(2, 3)
	s.stop()
}

// All workers and the master at once: clients wait, and are answered.
func TestSurvive_KilledMasterAndAllWorkers(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	victims := s.workers(1)
	dead := s.inCharge()
	kill(dead)
	for _, w := range victims {
		kill(w.PID)
	}
	s.get("/").generation(1)
	s.replaced(dead)
	s.settled(1, 2)
	s.stop()
}

// A master that is killed while the next generation starts is replaced, and nothing is left of what was to come.
func TestSurvive_KilledDuringAnUpgrade(t *testing.T) { rounds(t, 5, 20, killDuringUpgrade) }

func killDuringUpgrade(t *testing.T, kills int) {
	s := start(t, options{flags: []string{"-w", "2"}})
	p := plan{addr: s.addr, streams: postStreams("/echo", requestsPerSecond()/2), every: slower(100 * time.Millisecond), tail: slower(500 * time.Millisecond)}
	generation, aborts := 1, 0
	r := p.under(t, kills, func(int) {
		generation++
		old := s.inCharge()
		s.signal(syscall.SIGUSR2)
		s.await("the upgrade begins", func(e event) bool { return e.Msg == "Upgrade started" && e.To == generation })
		pause(time.Duration(rand.Int64N(int64(slower(45 * time.Millisecond)))))
		victim := old
		if next := s.preparing(generation); next != 0 && rand.IntN(2) == 0 {
			victim = next
		}
		kill(victim)
		if !completed(generation)(s.outcome(generation)) {
			aborts++
		}
		eventually(t, patience, "one master that lives", func() bool {
			ms := s.masters()
			return len(ms) == 1 && ms[0].PID != victim
		})
		s.settled(s.lastCharge(), 2)
	})
	r.untouched(t, p)
	t.Logf("%d of %d upgrades were aborted", aborts, generation-1)
	s.upgrade(generation + 1)
	s.settled(generation+1, 2)
	s.stop()
}

// While an old generation drains, its orders are known to whoever comes next: a worker that would take a second stop
// signal as an order to end at once gets none, and one that overstays is killed when its time is over.
func TestSurvive_KilledDuringADrain(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"--drain-timeout", "20s"}, command: role("shutdown")})
	slow := s.ask("/?ms=1500")
	s.inFlight(slow)
	s.upgrade(2)
	s.await("generation 1 drains", func(e event) bool { return e.Msg == "Worker drains" && e.Generation == 1 })
	s.killMaster()
	if r := slow.answer(t); !strings.Contains(r.body, "generation 1 ") {
		t.Errorf("answer %q", r.body)
	}
	s.settled(2, 2)
	s.get("/").generation(2)
	s.stop()
}

// A stop goes on when the master is killed on the way.
func TestSurvive_KilledDuringAStop(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	slow := s.ask("/slow?ms=1500")
	s.inFlight(slow)
	s.signal(syscall.SIGTERM)
	s.await("the stop has begun", func(e event) bool { return e.Msg == "Shutting down" })
	kill(s.inCharge())
	slow.answer(t).generation(1)
	s.exits(0)
}

// What is on disk when the master dies may be a broken release: it is not what takes its place.
func TestSurvive_BrokenBinaryOnDisk(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	s.script("exit 7")
	s.killMaster()
	s.get("/").generation(1)
	s.refused(2)
	s.killMaster()
	s.goodBinary()
	s.upgrade(3)
	s.settled(3, 2)
	s.stop()
}

// Nor is what the configuration file has come to say: it is for the next upgrade.
func TestSurvive_BrokenConfiguration(t *testing.T) {
	t.Parallel()
	config := filepath.Join(publicDir(t), "gapless.yaml")
	writeTo(t, config, "drain-timeout: 25s\n")
	s := start(t, options{flags: []string{"--config", config}})
	writeTo(t, config, "no-such-setting: 1\n")
	s.killMaster()
	s.get("/").generation(1)
	s.refused(2)
	writeTo(t, config, "drain-timeout: 20s\n")
	s.upgrade(3)
	s.settled(3, 2)
	s.stop()
}

// The client of an upgrade whose master is killed is told so.
func TestSurvive_WaitingClientIsAnswered(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	s := start(t, options{command: []string{a.path}, flags: []string{"--before-start", "test $GAPLESS_GENERATION = 1 || sleep 1"}})
	s.signal(syscall.SIGUSR2)
	s.await("steps run", func(e event) bool { return e.Msg == "Running previous step" && e.Generation == 2 })
	signal(t, s.first, syscall.SIGKILL)
	s.replaced(s.first)
	e := s.outcome(2)
	if !aborted(2)(e) || !strings.Contains(e.Reason, "killed") {
		t.Errorf("outcome %+v", e)
	}
	s.settled(1, 2)
	s.upgrade(3)
	s.settled(3, 2)
	s.stop()
}
