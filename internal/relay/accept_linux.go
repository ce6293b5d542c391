package relay

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

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
