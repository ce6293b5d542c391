package execstep

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

func (s Step) run(argv, env []string) error {
	if len(argv) == 0 {
		return errors.New("no command")
	}
	runtime.LockOSThread()
	_, dir, exe, report := s.layout()

	// What the worker must not see: everything that is not its own. The report pipe closes with the exec.
	if err := unix.CloseRange(uint(report), math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close the other descriptors: %w", err)
	}
	if err := unix.Fchdir(dir); err != nil {
		return fmt.Errorf("change to the working directory: %w", err)
	}
	unix.CloseOnExec(dir)

	// Go raised its own soft limit and would give the command the one that the parent was started with. A server
	// wants what is allowed; setting it through package syscall tells Go to leave it.
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err == nil {
		lim.Cur = lim.Max
		if s.NoFile > 0 {
			lim.Cur = min(s.NoFile, lim.Max)
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
			return fmt.Errorf("set the limit on open files to %d: %w", lim.Cur, err)
		}
	}
	if s.Umask != nil {
		unix.Umask(*s.Umask)
	}
	path := s.Path
	if s.ByFD {
		path = "/proc/self/fd/" + strconv.Itoa(exe)
		// An interpreter opens the script by this name after the exec, so for scripts the descriptor must stay.
		if !script(exe) {
			unix.CloseOnExec(exe)
		} else if _, err := unix.FcntlInt(uintptr(exe), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("keep the pinned script open: %w", err)
		}
	}
	if err := s.credentials(); err != nil {
		return err
	}
	err := syscall.Exec(path, argv, s.environ(env, os.Getpid()))
	return fmt.Errorf("execute %s: %w", s.Path, err)
}

// credentials come last, as all before may need the master's rights, and in this order, as each takes away the
// right to do the one before.
func (s Step) credentials() error {
	if s.GID != nil || s.UID != nil {
		if err := syscall.Setgroups(s.Groups); err != nil {
			return fmt.Errorf("set the supplementary groups: %w", err)
		}
	}
	if s.GID != nil {
		if err := syscall.Setgid(*s.GID); err != nil {
			return fmt.Errorf("change to group %d: %w", *s.GID, err)
		}
	}
	if s.UID != nil {
		if err := syscall.Setuid(*s.UID); err != nil {
			return fmt.Errorf("change to user %d: %w", *s.UID, err)
		}
	}
	return nil
}

// script reads through /proc as the descriptor may be O_PATH.
func script(fd int) bool {
	f, err := os.Open("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return false
	}
	defer f.Close()
	head := make([]byte, 2)
	n, _ := f.Read(head)
	return bytes.Equal(head[:n], []byte("#!"))
}
