// Package pidfd watches and signals processes by descriptor, so that a recycled PID can never be mistaken for the process
// that had it before.
//
// A [Process] is one code path for three origins: a child that this process started ([Start]), any living process ([Open]),
// and a descriptor that an earlier master left ([Adopt]). All three are signalled and waited for alike. What differs
// is only how the exit status is learnt: a child is reaped with waitid(P_PIDFD); of any other the kernel tells the status
// once its real parent has reaped it (Linux 6.15 or later).
//
// Invariants:
//   - a child is reaped exactly once, here: nobody else may wait for it, neither os/exec nor wait4(-1). A process that does
//     have such a loop loses nothing: the status then comes from the kernel as for a stranger.
//   - Done is closed when the process is dead, never earlier, whoever reaps it.
//   - each Process has one goroutine, which [Process.Close] ends and waits for.
//
// Only Linux has pidfds; elsewhere every constructor fails with ErrNotSupported.
package pidfd

import (
	"errors"
	"fmt"
	"syscall"
)

// ErrNotSupported says that this system has no pidfds (they need Linux 5.4 or later).
var ErrNotSupported = errors.New("pidfds are not supported here: Linux 5.4 or later is needed")

// Status is how a process ended. The zero Status means that nobody could tell: it was not our child, and the kernel is
// older than 6.15 or its parent has not reaped it in time.
type Status struct {
	// Known is false when the process is dead and nothing more could be learnt.
	Known bool
	// Code is the exit status of a process that exited, else 0.
	Code int
	// Signal is what killed the process; 0 if it exited.
	Signal syscall.Signal
	// CoreDumped says that the process left a core dump.
	CoreDumped bool
}

// Success reports whether the process is known to have exited with status 0.
func (s Status) Success() bool { return s.Known && s.Signal == 0 && s.Code == 0 }

// String words the status as os.ProcessState does: "exit status 3", "signal: killed".
func (s Status) String() string {
	switch {
	case !s.Known:
		return "exit status unknown"
	case s.Signal != 0 && s.CoreDumped:
		return fmt.Sprintf("signal: %s (core dumped)", s.Signal)
	case s.Signal != 0:
		return fmt.Sprintf("signal: %s", s.Signal)
	}
	return fmt.Sprintf("exit status %d", s.Code)
}

// FromWaitStatus converts what wait4 reports, for callers that reap by themselves.
func FromWaitStatus(ws syscall.WaitStatus) Status {
	if ws.Signaled() {
		return Status{Known: true, Signal: ws.Signal(), CoreDumped: ws.CoreDump()}
	}
	return Status{Known: true, Code: ws.ExitStatus()}
}
