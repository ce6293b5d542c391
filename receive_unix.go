//go:build unix

package gapless

import (
	"os"

	"golang.org/x/sys/unix"
)

// canOpen says whether n more descriptors can be opened.
func canOpen(n int) bool {
	return topIsFree(n) || opens(n)
}

// topIsFree says whether the n highest numbers that a descriptor can have are unused. It costs one call of the kernel,
// and is true of nearly every process: the lowest number that is free is used first.
func topIsFree(n int) bool {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil || lim.Cur < uint64(n) || lim.Cur > 1<<31-1 {
		return false
	}
	fds := make([]unix.PollFd, n)
	for i := range fds {
		fds[i].Fd = int32(lim.Cur) - 1 - int32(i)
	}
	if used, err := unix.Poll(fds, 0); err != nil || used != n {
		return false // unused ones have an event as well
	}
	for _, fd := range fds {
		if fd.Revents&unix.POLLNVAL == 0 {
			return false
		}
	}
	return true
}

// opens tries it.
func opens(n int) bool {
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
