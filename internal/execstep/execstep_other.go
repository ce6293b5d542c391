//go:build !linux

package execstep

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func (s Step) run(argv, env []string) error {
	if len(argv) == 0 {
		return errors.New("no command")
	}
	if s.ByFD || s.UID != nil || s.GID != nil {
		return errors.New("pinned executables and other credentials need Linux")
	}
	_, dir, _, report := s.layout()
	unix.CloseOnExec(report)
	if err := unix.Fchdir(dir); err != nil {
		return fmt.Errorf("change to the working directory: %w", err)
	}
	unix.CloseOnExec(dir)
	if s.Umask != nil {
		unix.Umask(*s.Umask)
	}
	err := syscall.Exec(s.Path, argv, s.environ(env, os.Getpid()))
	return fmt.Errorf("execute %s: %w", s.Path, err)
}

// here is never asked for elsewhere: see Inside.
func (s Step) here([]string) error { return errors.New("a step without an exec needs Linux") }
