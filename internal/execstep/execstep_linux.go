package execstep

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
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
	if err := s.surroundings(dir); err != nil {
		return err
	}
	unix.CloseOnExec(dir)
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

// here is run without the exec. The report pipe is left open.
func (s Step) here(env []string) error {
	if s.ByFD || s.UID != nil || s.GID != nil {
		return errors.New("a pinned executable and other credentials need an exec")
	}
	_, dir, _, report := s.layout()
	if err := s.surroundings(dir); err != nil {
		return err
	}
	if err := closeInherited(dir, report); err != nil {
		return fmt.Errorf("close the other descriptors: %w", err)
	}
	os.Clearenv()
	for _, kv := range s.environ(env, os.Getpid()) {
		name, value, _ := strings.Cut(kv, "=")
		if err := os.Setenv(name, value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// closeInherited closes what came with the exec of this process, from a descriptor on and but for one. What the
// process has opened since, Go's runtime above all, is marked to be closed on exec; what came cannot be.
func closeInherited(from, but int) error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd < from || fd == but {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd)
		}
	}
	unix.CloseOnExec(but)
	return nil
}

// surroundings changes the working directory, the limit on open files and the umask.
func (s Step) surroundings(dir int) error {
	if err := unix.Fchdir(dir); err != nil {
		return fmt.Errorf("change to the working directory: %w", err)
	}
	// O_NONBLOCK belongs to all holders of a socket together. It is never set here: sockets come with it, and where it is gone
	// another worker has cleared it that shares the socket, and that would fail if accept(2) did not wait any more.
	if s.Blocking {
		for i, name := range s.Names {
			if err := unix.SetNonblock(FirstFD+i, false); err != nil {
				return fmt.Errorf("have socket %s block: %w", name, err)
			}
		}
	}
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
	return nil
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
