package relay

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// someWaiting is how many connections are taken at a time where the kernel does not tell how many wait.
const someWaiting = 64

// Waiting is how many connections wait at a listening socket of TCP, or some number where the kernel does not tell.
func Waiting(listener *os.File) int {
	n := someWaiting
	if raw, err := listener.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
				n = int(info.Unacked) // on a listening socket, the length of its accept queue
			}
		})
	}
	return n
}

// accept takes one waiting connection, or returns nil when none waits. It does not use the runtime's poller, which
// would go on watching a socket that belongs to workers.
func accept(listener *os.File) (*os.File, error) {
	raw, err := listener.SyscallConn()
	if err != nil {
		return nil, err
	}
	var file *os.File
	var acceptErr error
	err = raw.Control(func(fd uintptr) {
		// O_NONBLOCK belongs to all holders together: one of them may have cleared it.
		if acceptErr = unix.SetNonblock(int(fd), true); acceptErr != nil {
			return
		}
		for {
			n, _, err := unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			switch {
			case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
				continue
			case errors.Is(err, unix.EAGAIN):
			case err != nil:
				acceptErr = os.NewSyscallError("accept", err)
			default:
				file = os.NewFile(uintptr(n), "connection")
			}
			return
		}
	})
	return file, errors.Join(err, acceptErr)
}
