//go:build unix

package gapless

import (
	"os"

	"golang.org/x/sys/unix"
)

// canOpen says whether n more descriptors can be opened.
func canOpen(n int) bool {
	fds := make([]int, 0, n)
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	first, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	for err == nil {
		if fds = append(fds, first); len(fds) == n {
			return true
		}
		first, err = unix.FcntlInt(uintptr(fds[0]), unix.F_DUPFD_CLOEXEC, 0)
	}
	return false
}
