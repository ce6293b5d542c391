//go:build unix

package verify

import (
	"os/exec"
	"syscall"
)

// ownGroup gives a command a process group of its own, which is killed as a whole when its context ends.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// The leader is not reaped before Cancel has returned, so its number is still that of the group.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
