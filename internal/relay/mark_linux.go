package relay

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// markSocket prepares a socket that dials from a certain address: an IPv6 traffic class if it is not 0, and a port of its
// own for each pair of ends, so that a port in use to somewhere else does not count against the range.
func markSocket(c syscall.RawConn, class int) error {
	return control(c, func(fd int) error {
		err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		if class != 0 {
			err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, class))
		}
		return os.NewSyscallError("setsockopt", err)
	})
}

// control applies f to a socket's descriptor.
func control(c syscall.RawConn, f func(fd int) error) error {
	var err error
	if ctlErr := c.Control(func(fd uintptr) { err = f(int(fd)) }); ctlErr != nil {
		return ctlErr
	}
	return err
}
