//go:build linux

package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"gapless/internal/procfs"
)

// proc is one process of a gapless.
type proc struct {
	procfs.Stat
	Args       []string
	Generation int // 0: no worker
	Worker     int
}

// master tells a manager from a worker and from short-lived helpers.
func (p proc) master() bool { return len(p.Args) > 1 && p.Args[1] == "run" && p.Generation == 0 }

// relay tells a relay process.
func (p proc) relay() bool { return len(p.Args) > 1 && p.Args[1] == "relay" && p.Generation == 0 }

func (p proc) String() string {
	return fmt.Sprintf("%d %c (parent %d, session %d) %s", p.PID, p.State, p.Parent, p.Session, strings.Join(p.Args, " "))
}

// tree returns everything below the parent that lives.
func (s *server) tree() []proc {
	stats, err := procfs.Descendants(s.pid())
	if err != nil {
		return nil
	}
	return describe(stats)
}

func describe(stats []procfs.Stat) []proc {
	var ps []proc
	for _, st := range stats {
		if st.Dead() {
			continue
		}
		p := proc{Stat: st}
		p.Args, _ = procfs.Cmdline(st.PID)
		env, _ := procfs.Environ(st.PID)
		for _, kv := range env {
			if v, ok := strings.CutPrefix(kv, "GAPLESS_GENERATION="); ok {
				p.Generation, _ = strconv.Atoi(v)
			}
			if v, ok := strings.CutPrefix(kv, "GAPLESS_WORKER="); ok {
				p.Worker, _ = strconv.Atoi(v)
			}
		}
		ps = append(ps, p)
	}
	return ps
}

// masters returns the masters that live.
func (s *server) masters() []proc {
	return s.those(proc.master)
}

// workers returns the processes of a generation's workers.
func (s *server) workers(generation int) []proc {
	return s.those(func(p proc) bool { return p.Generation == generation })
}

func (s *server) those(match func(proc) bool) []proc {
	var found []proc
	for _, p := range s.tree() {
		if match(p) {
			found = append(found, p)
		}
	}
	return found
}

// worker returns the one in a slot of a generation.
func (s *server) worker(generation, slot int) proc {
	s.t.Helper()
	var found []proc
	eventually(s.t, patience, fmt.Sprintf("one worker %d of generation %d", slot, generation), func() bool {
		found = s.those(func(p proc) bool { return p.Generation == generation && p.Worker == slot })
		return len(found) == 1
	})
	return found[0]
}

// settled waits until one master and the workers of one generation are all that is left, and perhaps that master's
// relay, which stays once something has waited on a dead worker's lane for longer than its replacement took to start.
func (s *server) settled(generation, workers int) {
	s.t.Helper()
	if !s.settles(generation, workers) {
		s.t.Fatalf("not settled to one master and %d workers of generation %d; there are:\n%s", workers, generation, list(s.tree()))
	}
}

func (s *server) settles(generation, workers int) bool {
	return became(patience, func() bool {
		if s.gone() {
			return true
		}
		masters, n := s.masters(), 0
		if len(masters) != 1 {
			return false
		}
		for _, p := range s.tree() {
			switch {
			case p.Generation == generation:
				n++
			case p.relay() && p.Parent == masters[0].PID, p.PID == masters[0].PID:
			default:
				return false
			}
		}
		return n == workers
	}) && !s.gone()
}

func list(ps []proc) string {
	var b strings.Builder
	for _, p := range ps {
		fmt.Fprintf(&b, "\t%v\n", p)
	}
	return b.String()
}

// leftovers returns what lives of a run after its parent has gone. It all came to this process, the subreaper.
func leftovers(mark string) []proc {
	stats, err := procfs.Descendants(os.Getpid())
	if err != nil {
		return nil
	}
	var left []procfs.Stat
	for _, st := range stats {
		if yes, err := procfs.EnvironHas(st.PID, mark); err == nil && yes && !st.Dead() {
			left = append(left, st)
		}
	}
	return describe(left)
}

// send sends a signal to a process that is not our child, through a pidfd.
func send(pid int, sig syscall.Signal) error {
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	defer p.Release()
	return p.Signal(sig)
}

// signal sends a signal to a process that must be there.
func signal(t testing.TB, pid int, sig syscall.Signal) {
	t.Helper()
	if err := send(pid, sig); err != nil {
		t.Fatalf("signal %v to %d: %v", sig, pid, err)
	}
}

// stop stops processes and waits until each of their threads stands still.
func stop(t testing.TB, pids []int) {
	t.Helper()
	for _, pid := range pids {
		_ = send(pid, syscall.SIGSTOP) // one that has gone stands still, too
	}
	eventually(t, patience, "all threads are stopped", func() bool {
		for _, pid := range pids {
			threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
			for _, thread := range threads {
				text, err := os.ReadFile(thread)
				if err != nil {
					continue // it has gone
				}
				if state := string(text[strings.LastIndexByte(string(text), ')')+1:]); !strings.HasPrefix(state, " T") && !strings.HasPrefix(state, " Z") {
					return false
				}
			}
		}
		return true
	})
}

// kill sends KILL to a process that may have gone.
func kill(pid int) { _ = send(pid, syscall.SIGKILL) }

// started holds the PIDs of those children of this process that exec.Cmd waits for although they may have a process group
// of their own.
var started sync.Map

// orphanZombies returns the dead children of this process that it has not started itself. Those are in its own process
// group, unless started knows better; what comes to it as subreaper never is, as masters and workers have their own.
// Who asked exec.Cmd instead, whose Wait may be late, would take statuses that another test waits for.
func orphanZombies() []int {
	stats, err := procfs.Descendants(os.Getpid())
	if err != nil {
		return nil
	}
	var pids []int
	for _, st := range stats {
		if _, mine := started.Load(st.PID); !mine && st.Dead() && st.Parent == os.Getpid() && st.Group != syscall.Getpgrp() {
			pids = append(pids, st.PID)
		}
	}
	return pids
}
