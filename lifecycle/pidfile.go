package lifecycle

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// pidFile is the file that names the parent. The lock on it tells a living parent from a stale file, without a look at
// PIDs that somebody else may have by now.
type pidFile struct {
	path string
	f    *os.File
}

// lockPIDFile writes the PID of this process; path "" does nothing.
func lockPIDFile(path string) (*pidFile, error) {
	if path == "" {
		return &pidFile{}, nil
	}
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return nil, fmt.Errorf("--pid-file %s: %w; name a file in a directory that %s may write", path, reason(err), whoami())
		}
		if err := lock(f); err != nil {
			defer f.Close()
			if !errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("--pid-file %s: %w", path, err)
			}
			text, _ := io.ReadAll(io.LimitReader(f, 32))
			return nil, fmt.Errorf("--pid-file %s: gapless runs already with pid %s; stop it, or name another file",
				path, strings.TrimSpace(string(text)))
		}
		if !names(path, f) {
			f.Close() // a parent that ended removed it after we had opened it: what we hold nobody else would find
			continue
		}
		if err = f.Truncate(0); err == nil {
			_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("--pid-file %s: %w", path, reason(err))
		}
		return &pidFile{path, f}, nil
	}
}

// names tells whether path still is the name of f.
func names(path string, f *os.File) bool {
	held, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(held, there)
}

func lock(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var lockErr error
	if err := raw.Control(func(fd uintptr) { lockErr = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB) }); err != nil {
		return err
	}
	return lockErr
}

func (p *pidFile) remove() {
	if p.f == nil {
		return
	}
	_ = os.Remove(p.path)
	p.f.Close()
}

func whoami() string {
	if uid := os.Getuid(); uid != 0 {
		return "uid " + strconv.Itoa(uid)
	}
	return "root"
}
