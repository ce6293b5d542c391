//go:build linux

package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gapless/internal/procfs"
)

const (
	// zombieEvery is how often the processes of a run are looked at.
	zombieEvery = 100 * time.Millisecond
	// zombieLimit is how long a dead process may wait for a parent that has nothing else to do.
	zombieLimit = 2 * time.Second
)

// A zombie is its parent's fault only while the parent could have reaped it: not while the parent waits for a CPU, is
// stopped, or is ending itself, which hands its children on. Time that nobody looked at is not held against it either,
// since whoever kept the watch from running may have kept the parent. A process whose first thread alone has ended is
// no zombie yet (procfs.Stat.Dead). The excuses end after patience, so that a parent that spins for ever is found.

// zombie is a process that has died and that nobody has waited for.
type zombie struct {
	procfs.Stat
	first, last time.Time     // when it was seen
	wasIdle     bool          // the parent, at last
	idle        time.Duration // how long the parent had nothing else to do
}

// seen takes in one look at it and tells whether it has been there for too long.
func (z *zombie) seen(at time.Time, parent int, idle bool) bool {
	if parent != z.Parent { // another one has its own time
		z.Parent, z.idle, z.wasIdle = parent, 0, false
	}
	if idle && z.wasIdle {
		z.idle += min(at.Sub(z.last), 2*zombieEvery)
	}
	z.last, z.wasIdle = at, idle
	return z.idle > zombieLimit || at.Sub(z.first) > patience
}

func (z *zombie) String() string {
	return fmt.Sprintf("%d (%s, parent %d, started %d): there for %v, in %v of which its parent had nothing else to do; threads of the parent: %s",
		z.PID, z.Command, z.Parent, z.Start, z.last.Sub(z.first).Round(time.Millisecond), z.idle.Round(time.Millisecond), threadStates(z.Parent))
}

// threadStates returns the state of each thread of a process, as ps prints it; nothing for one that is gone.
func threadStates(pid int) string {
	files, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*", "stat"))
	var states strings.Builder
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has just ended
		}
		if _, rest, ok := strings.Cut(string(text[strings.LastIndexByte(string(text), ')')+1:]), " "); ok && rest != "" {
			states.WriteByte(rest[0])
		}
	}
	return states.String()
}

// idles tells whether all threads of a process sleep.
func idles(pid int) bool {
	states := threadStates(pid)
	return states != "" && strings.Trim(states, "S") == ""
}

// zombieWatch notes processes that stay zombies.
type zombieWatch struct {
	stop  chan struct{} // closed by end
	over  chan struct{} // closed by the watch, which ends when it has found one
	found []string      // read when over is closed
}

func watchZombies(root int) *zombieWatch {
	w := &zombieWatch{stop: make(chan struct{}), over: make(chan struct{})}
	go func() {
		defer close(w.over)
		type name struct {
			pid   int
			start uint64
		}
		known := map[name]*zombie{}
		tick := time.NewTicker(zombieEvery)
		defer tick.Stop()
		for {
			select {
			case <-w.stop:
				return
			case <-tick.C:
			}
			stats, _ := procfs.Descendants(root)
			now := map[name]*zombie{}
			for _, st := range stats {
				if !st.Dead() {
					continue
				}
				id := name{st.PID, st.Start}
				at, z := time.Now(), known[id]
				if z == nil {
					z = &zombie{Stat: st, first: at, last: at}
				}
				if z.seen(at, st.Parent, idles(st.Parent)) {
					w.found = append(w.found, z.String())
					return
				}
				now[id] = z
			}
			known = now
		}
	}()
	return w
}

func (w *zombieWatch) end() []string {
	close(w.stop)
	<-w.over
	return w.found
}

func TestZombie_IsItsParentsFaultWhileThatIdles(t *testing.T) {
	t.Parallel()
	type look struct {
		after  time.Duration
		parent int
		idle   bool
	}
	times := func(n int, l look) []look {
		var ls []look
		for range n {
			ls = append(ls, l)
		}
		return ls
	}
	tests := map[string]struct {
		looks []look
		want  bool
	}{
		"the parent idles":                        {times(22, look{zombieEvery, 1, true}), true},
		"the parent idles, not long":              {times(20, look{zombieEvery, 1, true}), false},
		"the parent waits for a CPU":              {times(100, look{zombieEvery, 1, false}), false},
		"the parent spins for ever":               {times(310, look{zombieEvery, 1, false}), true},
		"it idles between what it does":           {append(times(15, look{zombieEvery, 1, true}), append(times(50, look{zombieEvery, 1, false}), times(15, look{zombieEvery, 1, true})...)...), true},
		"nobody looked for a long time":           {times(2, look{10 * time.Second, 1, true}), false},
		"another parent gets it":                  {append(times(15, look{zombieEvery, 1, true}), times(15, look{zombieEvery, 2, true})...), false},
		"another parent gets it, and idles too":   {append(times(15, look{zombieEvery, 1, true}), times(25, look{zombieEvery, 2, true})...), true},
		"one parent after the other for too long": {append(times(290, look{zombieEvery, 1, false}), times(20, look{zombieEvery, 2, false})...), true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at := time.Now()
			z := zombie{Stat: procfs.Stat{PID: 3, Parent: 1}, first: at, last: at}
			got := false
			for _, l := range tt.looks {
				at = at.Add(l.after)
				got = got || z.seen(at, l.parent, l.idle)
			}
			if got != tt.want {
				t.Errorf("too long: %v, want %v: %v", got, tt.want, &z)
			}
		})
	}
}

// neglecting starts a process that never waits for its dead child, and returns it and the child.
func neglecting(t *testing.T) (*exec.Cmd, int) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "true & exec sleep 300") // the child of what has become sleep(1)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}         // so that its child counts as an orphan
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	started.Store(cmd.Process.Pid, true)
	dead := 0
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		eventually(t, patience, "the orphan is reaped", func() bool {
			reapOrphans()
			_, err := procfs.ReadStat(dead)
			return dead == 0 || err != nil
		})
	})
	eventually(t, patience, "a dead child of sleep", func() bool {
		if args, err := procfs.Cmdline(cmd.Process.Pid); err != nil || len(args) == 0 || args[0] != "sleep" {
			return false
		}
		stats, _ := procfs.Descendants(cmd.Process.Pid)
		for _, st := range stats {
			if st.Dead() {
				dead = st.PID
			}
		}
		return dead != 0
	})
	return cmd, dead
}

func TestZombie_OfAParentThatNeverWaitsIsFound(t *testing.T) {
	t.Parallel()
	cmd, dead := neglecting(t)
	w := watchZombies(cmd.Process.Pid)
	select {
	case <-w.over:
	case <-time.After(2 * patience):
	}
	found := w.end()
	if len(found) != 1 || !strings.HasPrefix(found[0], strconv.Itoa(dead)+" ") {
		t.Errorf("found %q, want process %d", found, dead)
	}
}

// A stopped process is what a test makes of a parent; one that waits for a CPU cannot be made to wait for sure.
func TestZombie_OfAStoppedParentIsExcused(t *testing.T) {
	t.Parallel()
	cmd, _ := neglecting(t)
	eventually(t, patience, "sleep sleeps", func() bool { return idles(cmd.Process.Pid) })
	signal(t, cmd.Process.Pid, syscall.SIGSTOP)
	eventually(t, patience, "it is stopped, which is not idle", func() bool { return threadStates(cmd.Process.Pid) == "T" })
	if idles(cmd.Process.Pid) {
		t.Error("a stopped process counts as idle")
	}
}
