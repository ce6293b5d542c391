package upgrade

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// openForeign claims a socket that another process opened, as systemd does. If the kernel lets it be steered, it gets a
// sibling at once: without one the kernel refuses a program on a socket that did not start with SO_REUSEPORT. Between
// the sibling's listen and the program, some tens of microseconds, the sibling may get a connection: it is a free lane
// with something in its queue then, which the watcher reports as any other.
func (inv *Inventory) openForeign(g *group) ([]*os.File, error) {
	name := g.address.Addr
	first := inv.foreign(name)
	if first == nil {
		return nil, fmt.Errorf("%w: fd:%s: no socket of that name: %s", ErrBadAddress, name, inv.foreignNames())
	}
	fail := func(err error) ([]*os.File, error) {
		return nil, errors.Join(fmt.Errorf("listen at fd:%s: %w", name, err), first.Close())
	}
	kind, err := inspectForeign(first)
	if err != nil {
		return fail(err)
	}
	if err := prepareInherited(first); err != nil {
		return fail(err)
	}
	if kind.tcp {
		err := withFd(first, func(fd int) error {
			return setOptions(fd, []option{{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1}})
		})
		if err != nil {
			return fail(err)
		}
	}
	if kind.reason != "" {
		g.plain(kind.reason)
	}
	if g.mode == ModePlain {
		return []*os.File{first}, nil
	}
	second, reason := convertForeign(first, kind.reusePort, g.address)
	if reason != "" {
		g.plain(reason)
		return []*os.File{first}, nil
	}
	return []*os.File{first, second}, nil
}

// foreignKind is what a foreign socket turned out to be.
type foreignKind struct {
	tcp       bool
	reusePort bool   // it had SO_REUSEPORT already
	reason    string // why it cannot be steered
}

func inspectForeign(file *os.File) (kind foreignKind, err error) {
	if _, err := socketInode(file); err != nil {
		return kind, err
	}
	err = withFd(file, func(fd int) error {
		values := make(map[int]int)
		for _, name := range []int{unix.SO_TYPE, unix.SO_DOMAIN, unix.SO_PROTOCOL, unix.SO_ACCEPTCONN, unix.SO_REUSEPORT} {
			v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, name)
			if err != nil && name != unix.SO_REUSEPORT { // unix sockets may not know it
				return os.NewSyscallError("getsockopt", err)
			}
			values[name] = v
		}
		if values[unix.SO_TYPE] != unix.SOCK_STREAM {
			return errors.New("it is no stream socket: use ListenStream= in the socket unit")
		}
		if values[unix.SO_ACCEPTCONN] == 0 {
			return errors.New("it does not listen: use Accept=no in the socket unit")
		}
		kind.reusePort = values[unix.SO_REUSEPORT] != 0
		domain, protocol := values[unix.SO_DOMAIN], values[unix.SO_PROTOCOL]
		inet := domain == unix.AF_INET || domain == unix.AF_INET6
		kind.tcp = inet && protocol == unix.IPPROTO_TCP
		switch {
		case !inet:
			kind.reason = "unix sockets cannot be steered"
		case protocol == unix.IPPROTO_MPTCP:
			kind.reason = "MPTCP sockets cannot be steered"
		case !kind.tcp:
			kind.reason = fmt.Sprintf("sockets of protocol %d cannot be steered", protocol)
		case !sameNetwork(fd, domain):
			kind.reason = "the socket belongs to another network namespace"
		}
		return nil
	})
	return kind, err
}

// sameNetwork says whether a sibling that this process opens would be in the socket's network namespace: elsewhere bind
// and attach succeed just as well, and steer nothing.
func sameNetwork(fd, domain int) bool {
	fresh, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fresh) }()
	here, err := unix.GetsockoptUint64(fresh, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return true // kernels before 5.14 do not say; nearly all sockets are at home
	}
	there, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	return err == nil && here == there
}

// convertForeign makes a group of a foreign listening socket and a new sibling, and gives it its first program. If that
// fails it says why, and the socket is as it was.
func convertForeign(first *os.File, reusePort bool, addr Address) (second *os.File, reason string) {
	undo := func(format string, args ...any) (*os.File, string) {
		if second != nil {
			_ = second.Close() // the last of the group, so no index moves
		}
		if !reusePort {
			_ = withFd(first, func(fd int) error { return setOptions(fd, []option{{unix.SOL_SOCKET, unix.SO_REUSEPORT, 0}}) })
		}
		return nil, fmt.Sprintf(format, args...)
	}
	if n, err := countListeners(first); err == nil && n > 1 {
		return nil, "other sockets share its port, so the kernel's order of them is unknown"
	}
	err := withFd(first, func(fd int) error { return setOptions(fd, []option{{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1}}) })
	if err != nil {
		return undo("the socket takes no SO_REUSEPORT: %v", err)
	}
	second, err = openSibling(addr, first)
	if errors.Is(err, unix.EADDRINUSE) {
		return undo("the socket belongs to another user: set ReusePort=yes and this service's user in the socket unit, or let gapless listen itself")
	}
	if err != nil {
		return undo("no second socket can be opened beside it: %v", err)
	}
	code, err := program([]target{{index: 0, weight: 1}})
	if err == nil {
		err = attach(first, code)
	}
	if err != nil {
		return undo("the kernel refuses the program: %v", err)
	}
	return second, ""
}
