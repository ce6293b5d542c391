package upgrade

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Accept takes one connection that waits at the lane, or returns nil. It is for lanes that no worker serves.
func (l *Lane) Accept() (*os.File, error) {
	var conn *os.File
	err := withFd(l.file, func(fd int) error {
		if err := unix.SetNonblock(fd, true); err != nil { // the worker that it had may have cleared it
			return err
		}
		for {
			n, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			switch {
			case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
				continue
			case errors.Is(err, unix.EAGAIN):
				return nil
			case err != nil:
				return err
			}
			conn = os.NewFile(uintptr(n), "stray at "+l.name)
			return nil
		}
	})
	if err != nil {
		return nil, fmt.Errorf("accept at %s: %w", l.name, err)
	}
	return conn, nil
}

// Shutdown refuses new connections at all addresses, for every process that holds a lane: the last act of a full stop,
// when no worker accepts any more. What is still queued is reset. Sockets that came from a service manager stay open.
func (inv *Inventory) Shutdown() error {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	var errs []error
	for _, g := range inv.groups {
		if g.address.Network == NetworkFD {
			continue // it is the service manager's, who may have more to do with it
		}
		for _, l := range g.lanes {
			err := withFd(l.file, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) })
			if err != nil && !errors.Is(err, unix.ENOTCONN) {
				errs = append(errs, fmt.Errorf("shut down %s: %w", l.name, err))
			}
		}
	}
	return errors.Join(errs...)
}
