package upgrade

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// openUnix opens a listening unix socket. A socket file gets its name only when it already listens, by a rename that
// replaces nothing unseen, so that nobody ever finds a dead file of ours there and two managers that start at once
// cannot both win.
func openUnix(path string) (*os.File, error) {
	if strings.HasPrefix(path, "@") {
		return listenUnix(path)
	}
	temp, err := tempSocketName(path)
	if err != nil {
		return nil, err
	}
	stale, err := probeSocketFile(path)
	if err != nil {
		return nil, err
	}
	file, err := listenUnix(temp)
	if err != nil {
		return nil, err
	}
	if err := installSocketFile(temp, path, stale); err != nil {
		_ = os.Remove(temp)
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// listenUnix binds and listens. An address that begins with @ is in the abstract namespace.
func listenUnix(path string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(fd, somaxconn()); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("listen", err)
	}
	return os.NewFile(uintptr(fd), "listener"), nil
}

// tempSocketName returns a name beside path that is no longer than a socket's may be.
func tempSocketName(path string) (string, error) {
	var random [4]byte
	if _, err := rand.Read(random[:]); err != nil {
		return "", fmt.Errorf("name a socket file: %w", err)
	}
	temp := filepath.Join(filepath.Dir(path), "."+hex.EncodeToString(random[:]))
	if len(temp) > maxUnixPath {
		return "", fmt.Errorf("%w: the directory of %s has too long a name for a socket: choose a shorter one", ErrBadAddress, path)
	}
	return temp, nil
}

// probeSocketFile says what stands at path: nothing (0), or a socket file that nobody answers at (its inode). A file
// that is no socket, and one that somebody serves, are errors.
func probeSocketFile(path string) (stale uint64, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); errors.Is(err, unix.ENOENT) {
		return 0, nil
	} else if err != nil {
		return 0, os.NewSyscallError("lstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return 0, fmt.Errorf("%s exists and is not a socket: move it away or choose another path", path)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	switch err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); {
	case errors.Is(err, unix.ECONNREFUSED):
		return st.Ino, nil
	case errors.Is(err, unix.ENOENT):
		return 0, nil
	case err == nil, errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EPROTOTYPE): // EAGAIN: its backlog is full
		return 0, os.NewSyscallError("connect", unix.EADDRINUSE)
	default:
		return 0, os.NewSyscallError("connect", err)
	}
}

// installSocketFile moves temp to path, where nothing is (stale is 0) or the dead socket file with inode stale. If
// somebody else was faster it puts back what it found and says EADDRINUSE.
func installSocketFile(temp, path string, stale uint64) error {
	if stale == 0 {
		err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
		switch {
		case errors.Is(err, unix.EEXIST):
			return os.NewSyscallError("rename", unix.EADDRINUSE)
		case errors.Is(err, unix.EINVAL): // a file system without this flag: link(2) refuses as well what exists
			if err = unix.Link(temp, path); errors.Is(err, unix.EEXIST) {
				return os.NewSyscallError("link", unix.EADDRINUSE)
			} else if err == nil {
				err = unix.Unlink(temp)
			}
		}
		return os.NewSyscallError("rename", err)
	}
	err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) {
		return os.NewSyscallError("rename", unix.Rename(temp, path))
	}
	if err != nil {
		return os.NewSyscallError("rename", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(temp, &st); err != nil || st.Ino != stale {
		return errors.Join(os.NewSyscallError("rename", unix.EADDRINUSE),
			os.NewSyscallError("rename", unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)))
	}
	return os.NewSyscallError("unlink", unix.Unlink(temp))
}

// fileInode returns the inode of the file at path, 0 where there is none.
func fileInode(path string) uint64 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return 0
	}
	return st.Ino
}
