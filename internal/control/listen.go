//go:build unix

package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// probePatience is how long a socket that is in the way may take to say that it lives.
	probePatience = time.Second
	// lockPatience is how long another gapless may take to put its socket into the same folder.
	lockPatience = 5 * time.Second
	lockInterval = 10 * time.Millisecond
)

// ErrTaken says that another gapless listens at the path.
var ErrTaken = errors.New("another gapless has this control socket")

// Listener listens at a control socket. Closing it removes the socket, unless somebody has put another in its place.
type Listener struct {
	*net.UnixListener
	path  string
	info  fs.FileInfo // of the socket that this is
	close func() error
}

// Path returns where the socket lies.
func (l *Listener) Path() string { return l.path }

// Close stops listening and removes the socket. Only the first call counts.
func (l *Listener) Close() error { return l.close() }

// Listen makes a control socket at path, and its folder (0700) if there is none. No client can reach the socket before
// it has its mode, 0600, and one that nobody listens at any more is replaced. Its errors name the path and the mend, and
// match ErrTaken if another gapless has it.
func Listen(path string) (*Listener, error) {
	l, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	return l, nil
}

func listen(path string) (*Listener, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("the path has %d bytes and a socket's may have %d: choose a shorter one with --control", len(path), maxSocketPath)
	}
	folder := filepath.Dir(path)
	if err := prepare(folder, os.Geteuid()); err != nil {
		return nil, err
	}
	unlock, err := lock(folder)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := checkFree(path); err != nil {
		return nil, err
	}
	inner, err := bind(path)
	if err != nil {
		return nil, err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(err, inner.Close())
	}
	l := &Listener{UnixListener: inner, path: path, info: info}
	l.close = sync.OnceValue(l.remove)
	return l, nil
}

// bind listens at path, where nobody else does, with mode 0600.
func bind(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// Linux gives the file the mode that the socket has before, less the umask, so that it is private from birth on.
	// Changing the umask instead would change it for every thread, and binding elsewhere and renaming would leave the
	// wrong path in what the kernel says of the socket. Where the mode comes too late, the credentials are checked anyway.
	private := func(_, _ string, rc syscall.RawConn) error {
		return rc.Control(func(fd uintptr) { _ = unix.Fchmod(int(fd), 0o600) })
	}
	l, err := (&net.ListenConfig{Control: private}).Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	inner := l.(*net.UnixListener)
	inner.SetUnlinkOnClose(false) // it may be another's by then
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, inner.Close())
	}
	return inner, nil
}

func (l *Listener) remove() error {
	// Removed while it still listens: otherwise a gapless that starts just now could find it dead, replace it, and lose
	// its own socket to this removal.
	var err error
	if unlock, lerr := lock(filepath.Dir(l.path)); lerr == nil {
		if now, serr := os.Lstat(l.path); serr == nil && os.SameFile(now, l.info) {
			err = os.Remove(l.path)
		}
		unlock()
	}
	return errors.Join(err, l.UnixListener.Close())
}

// prepare makes the folder, and refuses one in which another user could replace the socket.
func prepare(folder string, uid int) error {
	if err := os.MkdirAll(filepath.Dir(folder), 0o755); err != nil {
		return fmt.Errorf("make its folder: %w; choose another place with --control", err)
	}
	if err := os.Mkdir(folder, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make its folder: %w; choose another place with --control", err)
	}
	// The folder itself and, if it is a symbolic link, the link: in a folder such as /tmp anybody can make one.
	for _, stat := range []func(string) (fs.FileInfo, error){os.Lstat, os.Stat} {
		info, err := stat(folder)
		if err != nil {
			return err
		}
		sys, ok := info.Sys().(*syscall.Stat_t)
		switch {
		case !ok:
			return fmt.Errorf("the owner of %s is unknown: %w", folder, errors.ErrUnsupported)
		case int(sys.Uid) != uid && sys.Uid != 0:
			return fmt.Errorf("%s belongs to user %d and this is user %d: remove it, or choose another place with --control", folder, sys.Uid, uid)
		case info.Mode()&fs.ModeSymlink != 0:
			continue
		case !info.IsDir():
			return fmt.Errorf("%s is no folder: remove it, or choose another place with --control", folder)
		case info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0:
			return fmt.Errorf("others may write to %s: chmod go-w it, or choose another place with --control", folder)
		}
	}
	return nil
}

// lock keeps others that heed it from replacing sockets in folder until unlock is called. In a folder that is open to
// other users one of them could hold the lock, so patience with it ends.
func lock(folder string) (unlock func(), err error) {
	dir, err := os.Open(folder)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(lockPatience); ; {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { _ = dir.Close() }, nil
		case errors.Is(err, unix.EINTR):
		case !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end):
			_ = dir.Close()
			return nil, fmt.Errorf("lock its folder %s: %w; choose another place with --control", folder, os.NewSyscallError("flock", err))
		default:
			<-time.After(lockInterval)
		}
	}
}

// checkFree returns nil if nothing is at path, or a socket that nobody listens at.
func checkFree(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode()&fs.ModeSocket == 0:
		return errors.New("there is a file of this name that is no socket: remove it, or choose another place with --control")
	}
	ctx, cancel := context.WithTimeout(context.Background(), probePatience)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err == nil {
		defer conn.Close() //nolint:errcheck // nothing was sent
		if who, err := peerOf(conn.(*net.UnixConn)); err == nil {
			return fmt.Errorf("%w (pid %d): stop it, or choose another place with --control", ErrTaken, who.pid)
		}
		return fmt.Errorf("%w: stop it, or choose another place with --control", ErrTaken)
	}
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("ask whether another gapless has it: %w; choose another place with --control", err)
}
