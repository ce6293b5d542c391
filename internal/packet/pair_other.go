//go:build !linux

package packet

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// socketpair sets the flags after the fact, under the lock that keeps a fork from happening in between.
func socketpair() ([2]int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
	if err != nil {
		return fds, err
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
		if err := unix.SetNonblock(fd, true); err != nil {
			return fds, err
		}
	}
	return fds, nil
}
