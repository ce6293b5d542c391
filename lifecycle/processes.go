package lifecycle

import (
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gapless/internal/procfs"
)

// beSmall has this process, which is idle mostly, trade a little more collecting of garbage for memory: what a manager
// occupies comes on top of what its workers do.
func beSmall() { debug.SetGCPercent(25) }

// shrink gives back what a burst of work, such as the start of many workers, has left.
func shrink() { debug.FreeOSMemory() }

// tableflipChild is in the environment of every process that tableflip starts, and of no other.
const tableflipChild = "TABLEFLIP_HAS_PARENT_7DIU3=yes"

// endWait bounds how long ended processes are waited for: KILL takes effect at once, unless one hangs in the kernel.
const endWait = 2 * time.Second

// childMaster finds the process that tableflip has started when it has not told its PID: tableflip keeps it to itself.
func childMaster() int {
	children, err := procfs.Children(os.Getpid())
	if err != nil {
		return 0
	}
	for _, pid := range children {
		if yes, err := procfs.EnvironHas(pid, tableflipChild); err == nil && yes {
			return pid
		}
	}
	return 0
}

// endGeneration ends what is left of a generation that never took charge, whose master has or had this PID (0: it is
// looked for), and returns when it is gone.
func endGeneration(pid int) {
	if pid == 0 {
		if pid = childMaster(); pid == 0 {
			return
		}
	}
	// Stopped, it cannot fork while its descendants are counted. What has already lost its parent is in its session.
	_ = procfs.SignalChild(pid, syscall.SIGSTOP)
	_, _ = procfs.SignalDescendants(pid, syscall.SIGKILL)
	endSession(pid)
	_ = procfs.SignalChild(pid, syscall.SIGKILL)
}

// endAround ends a master and what else is left of its session, except for workers and what these have started.
func endAround(pid int, workers []int) {
	_ = procfs.SignalChild(pid, syscall.SIGKILL)
	endSession(pid, workers...)
}

// belongs tells whether a process is one of these workers, of a worker's group, or descends from one.
func belongs(s procfs.Stat, workers []int) bool {
	for range 32 {
		if slices.Contains(workers, s.PID) || slices.Contains(workers, s.Group) {
			return true
		}
		parent, err := procfs.ReadStat(s.Parent)
		if s.Parent <= 1 || err != nil {
			return false
		}
		s = parent
	}
	return false
}

// endSession ends all processes of a session, but for workers and what these have started, and waits for their end.
func endSession(session int, workers ...int) {
	spared := func(s procfs.Stat) bool { return len(workers) > 0 && belongs(s, workers) }
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(endWait); time.Now().Before(deadline); <-tick.C {
		_, _ = procfs.SignalSessionExcept(session, syscall.SIGKILL, spared)
		members, err := procfs.SessionMembers(session)
		living := 0
		for _, s := range members {
			if !s.Dead() && !spared(s) {
				living++
			}
		}
		if err != nil || living == 0 {
			return
		}
	}
}

// catches tells whether a process handles a signal, rather than dying of it.
func catches(pid int, sig syscall.Signal) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if mask, ok := strings.CutPrefix(line, "SigCgt:"); ok {
			bits, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
			return err == nil && bits&(1<<(uint(sig)-1)) != 0
		}
	}
	return false
}
