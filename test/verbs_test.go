//go:build linux

package test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gapless/internal/control"
)

// `gapless upgrade` tells what came of it, in words and by its exit status.
func TestVerbs_UpgradeTellsTheOutcome(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	s := start(t, options{command: []string{a.path}})
	if v := s.verb("upgrade").demand(t, 0); !strings.Contains(v.stdout, "generation 2 is in charge") {
		t.Errorf("the answer is %q", v.stdout)
	}
	s.settled(2, 2)
	a.role("exits-3")
	v := s.verb("upgrade").demand(t, 1)
	if v.stdout != "" || !strings.Contains(v.stderr, "exit status 3") {
		t.Errorf("stdout %q, stderr %q; want the reason on stderr alone", v.stdout, v.stderr)
	}
	st := s.becomes("what became of it", func(st control.Status) bool { return st.State == control.StateServing })
	if l := st.LastUpgrade; l == nil || l.OK || l.Generation != 3 || !strings.Contains(l.Reason, "exit status 3") {
		t.Errorf("the last upgrade is told as %+v", l)
	}
	s.get("/").generation(2)
	a.good()
	s.verb("upgrade").demand(t, 0)
	s.settled(4, 2)
	s.stop()
}

// --wait-drained returns when the old generation is gone, --no-wait at once, and --timeout in time; what was begun goes on.
func TestVerbs_WaitAsLongAsTheyAreTold(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"--before-start", "test $GAPLESS_GENERATION -lt 3 || sleep 1"}})
	slow := s.ask("/slow?ms=1500")
	s.inFlight(slow)
	if v := s.verb("upgrade", "--wait-drained").demand(t, 0); !strings.Contains(v.stdout, "alone") {
		t.Errorf("the answer is %q", v.stdout)
	}
	select {
	case <-slow.done:
	case <-time.After(500 * time.Millisecond): // the client may see its answer a moment later
		t.Error("it did not wait for the request in flight")
	}
	if left := s.workers(1); len(left) > 0 {
		t.Errorf("of generation 1 there are still:\n%s", list(left))
	}
	slow.answer(t).generation(1)

	if v := s.verb("upgrade", "--no-wait").demand(t, 0); len(s.out.find(completed(3))) > 0 || v.stdout == "" {
		t.Errorf("--no-wait has waited, or said %q", v.stdout)
	}
	s.upgraded(3)
	s.becomes("serving", func(st control.Status) bool { return st.State == control.StateServing })
	if v := s.verb("upgrade", "--timeout", "300ms").demand(t, 4); !strings.Contains(v.stderr, "it goes on") || len(s.out.find(completed(4))) > 0 {
		t.Errorf("the complaint is %q", v.stderr)
	}
	s.upgraded(4)
	s.settled(4, 2)
	s.stop()
}

// Of two at once one is told that gapless is busy, and nothing of it happens. That holds between different verbs too.
func TestVerbs_OneAtATime(t *testing.T) {
	for _, verbs := range [][2][]string{
		{{"upgrade"}, {"upgrade"}},
		{{"upgrade"}, {"reload"}},
		{{"upgrade"}, {"scale", "3"}},
		{{"reload"}, {"upgrade"}},
		{{"reload"}, {"scale", "1"}},
	} {
		t.Run(verbs[0][0]+" and "+strings.Join(verbs[1], " "), func(t *testing.T) {
			t.Parallel()
			held := filepath.Join(t.TempDir(), "held") // the step lasts until it is removed
			if err := os.WriteFile(held, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			s := start(t, options{flags: []string{"--before-start",
				"test $GAPLESS_GENERATION$GAPLESS_REVISION = 11 || while test -e '" + held + "'; do sleep 0.05; done"}})
			first := s.verbLater(verbs[0][0])
			s.becomes("it is under way", func(st control.Status) bool { return st.State != control.StateServing })
			second := s.verb(verbs[1][0], verbs[1][1:]...).demand(t, 1)
			if !strings.Contains(second.stderr, "busy") || second.stdout != "" {
				t.Errorf("the second was told %q", second.stderr)
			}
			if err := os.Remove(held); err != nil {
				t.Fatal(err)
			}
			first.wait().demand(t, 0)
			generation, revision := 2, 1
			if verbs[0][0] == "reload" {
				generation, revision = 1, 2
			}
			s.settled(generation, 2)
			st := s.becomes("the end of the first", func(st control.Status) bool {
				return st.State == control.StateServing && len(st.Generations) == 1
			})
			if g := st.Generations[0]; g.Generation != generation || g.Revision != revision || st.Workers != 2 {
				t.Errorf("now %d.%d serves, with %d workers: not only the first has happened", g.Generation, g.Revision, st.Workers)
			}
			s.stop()
		})
	}
}

// Many that knock together are one upgrade and refusals.
func TestVerbs_ManyUpgradesAtOnce(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"--before-start", "test $GAPLESS_GENERATION = 1 || sleep 2"}})
	const n = 6
	results := make([]said, n)
	var wg sync.WaitGroup
	for i := range n {
		r := s.verbLater("upgrade")
		wg.Go(func() { results[i] = r.wait() })
	}
	wg.Wait()
	done, busy := 0, 0
	for _, r := range results {
		switch {
		case r.status == 0:
			done++
		case r.status == 1 && strings.Contains(r.stderr, "busy"):
			busy++
		default:
			t.Errorf("status %d: %s", r.status, r.stderr)
		}
	}
	// A client that is slow to start may find the first upgrade over.
	if done+busy != n || done < 1 {
		t.Errorf("%d done, %d busy", done, busy)
	}
	s.settled(done+1, 2)
	if upgrades := len(s.out.find(msg("Upgrade complete"))); upgrades != done {
		t.Errorf("%d done, %d upgrades", done, upgrades)
	}
	s.stop()
}

// stop drains, stop --now does not, and both return when the parent is gone; then nothing runs.
func TestVerbs_Stop(t *testing.T) {
	for _, now := range []bool{false, true} {
		t.Run(fmt.Sprintf("now %v", now), func(t *testing.T) {
			t.Parallel()
			s := start(t, options{})
			path := s.socket()
			slow := s.ask("/slow?ms=1500")
			s.inFlight(slow)
			var args []string
			if now {
				args = []string{"--now"}
			}
			began := time.Now()
			s.verb("stop", args...).demand(t, 0)
			if took := time.Since(began); now && took > slower(1200*time.Millisecond) {
				t.Errorf("--now took %v", took)
			}
			if err := s.cmd.Process.Signal(syscall.Signal(0)); err == nil {
				select {
				case <-s.exited:
				case <-time.After(time.Second): // it is a zombie until this process has reaped it
					t.Error("the parent lives when stop has returned")
				}
			}
			s.exits(0)
			if !now {
				slow.answer(t)
			}
			for _, verb := range [][]string{{"status"}, {"upgrade"}, {"reload"}, {"scale", "3"}, {"stop"}} {
				cmd := exec.Command(built.gapless, append(verb[:1:1], append([]string{"--control", path}, verb[1:]...)...)...)
				out, _ := cmd.CombinedOutput()
				if got := cmd.ProcessState.ExitCode(); got != 3 {
					t.Errorf("%s: exit status %d, want 3: %s", verb[0], got, out)
				}
			}
		})
	}
}

// truth compares a status with what /proc shows; it is for moments at which nothing changes.
func (s *server) truth(st control.Status) {
	s.t.Helper()
	if st.ParentPID != s.pid() {
		s.t.Errorf("parent_pid %d, the parent is %d", st.ParentPID, s.pid())
	}
	told := map[int]bool{}
	for _, g := range st.Generations {
		if g.MasterPID != 0 {
			told[g.MasterPID] = true
		}
		for _, w := range g.Workers {
			told[w.PID] = true
			if w.Generation != g.Generation {
				s.t.Errorf("worker %d of generation %d is listed in %d", w.PID, w.Generation, g.Generation)
			}
			if w.State == "ready" && w.MemoryRSS == 0 {
				s.t.Errorf("worker %d occupies nothing", w.PID)
			}
		}
	}
	for _, p := range s.tree() {
		switch {
		case p.master() || p.Generation > 0:
			if !told[p.PID] {
				text, _ := json.Marshal(st)
				s.t.Errorf("the status does not tell of %v\n%s", p, text)
			}
			delete(told, p.PID)
		}
	}
	for pid := range told {
		s.t.Errorf("the status tells of %d, which does not exist", pid)
	}
}

// In each state the status says what is there.
func TestStatus_IsTrue(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	dir := t.TempDir()
	steps := filepath.Join(dir, "wait")
	s := prepare(t)
	writeTo(t, steps, "")
	s.run(options{command: []string{a.path}, flags: []string{"--before-start", "while test -e " + steps + "; do sleep 0.02; done"}})
	st := s.becomes("starting", func(st control.Status) bool { return st.State == control.StateStarting })
	if n := len(own(st)); n != 0 {
		t.Errorf("%d workers during the previous steps", n)
	}
	remove := func() {
		t.Helper()
		if err := os.Remove(steps); err != nil {
			t.Fatal(err)
		}
	}
	remove()
	s.await("the first workers are ready", msg("Application startup complete"))
	st = s.becomes("serving", func(st control.Status) bool { return st.State == control.StateServing })
	s.truth(st)
	if len(st.Addresses) != 1 || !strings.Contains(st.Addresses[0].URL, s.addr) || st.Addresses[0].Accept != control.AcceptSteered || st.Workers != 2 || inState(own(st), "ready") != 2 {
		t.Errorf("serving is told as %+v", st)
	}
	weight := 0
	for _, w := range own(st) {
		for _, l := range w.Lanes {
			weight += l.Weight
		}
	}
	if weight == 0 {
		t.Error("no worker has a share")
	}

	// Connections that are open.
	var conns []net.Conn
	for range 7 {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if n, err := c.Read(make([]byte, 4096)); n == 0 {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	st = s.status()
	open := 0
	for _, w := range own(st) {
		open += w.Established
	}
	if open != len(conns) {
		t.Errorf("%d connections are told of, want %d", open, len(conns))
	}

	writeTo(t, steps, "")
	s.signal(syscall.SIGUSR2)
	st = s.becomes("upgrading", func(st control.Status) bool { return st.State == control.StateUpgrading })
	if g := st.Generations[len(st.Generations)-1]; g.Generation != 1 || inState(g.Workers, "ready") != 2 {
		t.Errorf("during the upgrade generation 1 is told as %+v", g)
	}
	remove()
	s.upgraded(2)

	slow := s.ask("/slow?ms=4000") // outlives what is looked at
	s.inFlight(slow)
	s.verb("upgrade").demand(t, 0)
	st = s.becomes("draining", func(st control.Status) bool {
		return len(st.Generations) == 2 && st.Generations[1].Generation == 2 && len(st.Generations[1].Workers) == 1
	})
	if old := st.Generations[1]; old.State != control.GenerationDraining || old.MasterPID != 0 || old.WhyAlive == "" || inState(old.Workers, "draining") != 1 {
		t.Errorf("the draining generation is told as %+v", old)
	}
	s.truth(st)
	slow.answer(t)
	s.settled(3, 2)
	st = s.becomes("one generation", func(st control.Status) bool { return len(st.Generations) == 1 })
	if st.LastUpgrade == nil || !st.LastUpgrade.OK || st.LastUpgrade.Generation != 3 {
		t.Errorf("the last upgrade is told as %+v", st.LastUpgrade)
	}

	writeTo(t, steps, "")
	s.signal(syscall.SIGHUP)
	s.becomes("reloading", func(st control.Status) bool { return st.State == control.StateReloading })
	remove()
	st = s.becomes("reloaded", func(st control.Status) bool {
		return st.State == control.StateServing && len(st.Generations) == 1 && len(own(st)) == 2
	})
	if st.Generations[0].Revision != 2 {
		t.Errorf("revision %d after a reload", st.Generations[0].Revision)
	}
	s.truth(st)

	slow = s.ask("/slow?ms=1500")
	s.inFlight(slow)
	s.signal(syscall.SIGTERM)
	st = s.becomes("stopping", func(st control.Status) bool { return st.State == control.StateStopping })
	if n := inState(own(st), "draining"); n < 1 {
		t.Errorf("%d workers drain", n)
	}
	slow.answer(t)
	s.exits(0)
}

// Until the first workers are ready there is nothing to change: who wants to is told so, and signals do no harm.
func TestVerbs_DuringTheStart(t *testing.T) {
	for _, tt := range []struct {
		name  string
		flags func(gate string) []string
		env   string
	}{
		{"while steps run", func(gate string) []string {
			return []string{"--before-start", "while ! test -e " + gate + "; do sleep 0.02; done"}
		}, ""},
		{"while workers start", func(string) []string { return []string{"--ready", "notify"} }, "E2E_GATE="},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			gate := filepath.Join(t.TempDir(), "gate")
			o := options{flags: tt.flags(gate)}
			if tt.env != "" {
				o.command = role("notifies", tt.env+gate)
			}
			s := launch(t, o)
			st := s.becomes("starting", func(st control.Status) bool { return st.State == control.StateStarting })
			if st.Workers != 2 {
				t.Errorf("%d workers are wanted", st.Workers)
			}
			for _, verb := range [][]string{{"upgrade"}, {"reload"}, {"scale", "4"}} {
				if v := s.verb(verb[0], verb[1:]...).demand(t, 1); !strings.Contains(v.stderr, "busy: the first workers are not ready yet") {
					t.Errorf("%s was told %q", verb[0], v.stderr)
				}
			}
			for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGUSR1} {
				s.signal(sig)
			}
			writeTo(t, gate, "")
			s.await("the first workers are ready", msg("Application startup complete"))
			s.becomes("serving", func(st control.Status) bool { return st.State == control.StateServing && st.Workers == 2 })
			s.settled(1, 2)
			s.verb("upgrade").demand(t, 0)
			s.settled(2, 2)
			s.verb("stop").demand(t, 0)
			s.exits(0)
		})
	}
}
