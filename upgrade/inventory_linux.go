package upgrade

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// withFd lends a file's descriptor without File.Fd's habit of changing the blocking mode of every holder.
func withFd(file *os.File, use func(fd int) error) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var useErr error
	if err := conn.Control(func(fd uintptr) { useErr = use(int(fd)) }); err != nil {
		return err
	}
	return useErr
}

// open opens what an address needs at its claim and completes the group: the resolved address and the mode in force. It
// returns the sockets in the order in which they joined the kernel's group. Exactly one unless the address is foreign.
func (inv *Inventory) open(g *group) ([]*os.File, error) {
	switch g.address.Network {
	case NetworkTCP:
		file, err := inv.openTCP(g)
		if err != nil {
			return nil, err
		}
		return []*os.File{file}, nil
	case NetworkUnix:
		g.plain("unix sockets cannot be steered")
		file, err := openUnix(g.address.Addr)
		if err != nil {
			return nil, inv.explain(g.address, err)
		}
		if !strings.HasPrefix(g.address.Addr, "@") {
			g.fileInode = fileInode(g.address.Addr)
		}
		return []*os.File{file}, nil
	case NetworkFD:
		return inv.openForeign(g)
	default:
		return nil, fmt.Errorf("%w: network %q of %s is none of tcp, unix, fd", ErrBadAddress, g.address.Network, g.address.Name)
	}
}

// plain records that a group cannot be steered and why. The first reason counts.
func (g *group) plain(reason string) {
	if g.mode != ModePlain {
		g.mode, g.reason = ModePlain, reason
	}
}

func (inv *Inventory) openTCP(g *group) (*os.File, error) {
	sa, err := socketAddress(g.address.Addr)
	if err != nil {
		return nil, fmt.Errorf("%w %q: %w", ErrBadAddress, g.address.Addr, err)
	}
	file, err := claimTCP(sa, g.mode != ModePlain)
	if v6, ok := sa.(*unix.SockaddrInet6); ok && isWildcard(v6) && errors.Is(err, unix.EAFNOSUPPORT) {
		sa = &unix.SockaddrInet4{Port: v6.Port} // a kernel without IPv6 serves "every address" all the same
		file, err = claimTCP(sa, g.mode != ModePlain)
	}
	var refused *attachError
	if errors.As(err, &refused) {
		g.plain(refused.Error())
		file, err = claimTCP(sa, false)
	}
	if err != nil {
		return nil, inv.explain(g.address, err)
	}
	resolved, err := localAddress(file)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen at %s: %w", g.address, err), file.Close())
	}
	g.address.Addr = resolved
	return file, nil
}

// claimTCP opens the first socket of an address. A port of the kernel's choice is found out first and then claimed by its
// number: the kernel takes back a port that it chose as soon as anybody calls shutdown(2) on the socket, so that the
// lane could not be repaired.
//
// Of several that claim an address at the same moment all may be refused by listen(2), so that case is tried again.
func claimTCP(sa unix.Sockaddr, steer bool) (*os.File, error) {
	if portOf(sa) != 0 {
		for pause := time.Millisecond; ; pause *= 2 {
			file, err := listenTCP(sa, claimExclusively, steer)
			var refused *os.SyscallError
			if !errors.Is(err, unix.EADDRINUSE) || errors.As(err, &refused) && refused.Syscall != "listen" || pause > time.Second/4 {
				return file, err
			}
			<-time.After(rand.N(pause))
		}
	}
	for range 20 {
		chosen, err := listenTCP(sa, claimExclusively, false)
		if err != nil {
			return nil, err
		}
		numbered, err := socketName(chosen)
		if err := errors.Join(err, chosen.Close()); err != nil {
			return nil, err
		}
		file, err := listenTCP(numbered, claimExclusively, steer)
		if !errors.Is(err, unix.EADDRINUSE) { // else somebody took the port in between
			return file, err
		}
	}
	return nil, os.NewSyscallError("bind", unix.EADDRINUSE)
}

func portOf(sa unix.Sockaddr) int {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return sa.Port
	case *unix.SockaddrInet6:
		return sa.Port
	}
	return 0
}

// socketName returns what a socket is bound to.
func socketName(file *os.File) (sa unix.Sockaddr, err error) {
	err = withFd(file, func(fd int) error {
		var err error
		sa, err = unix.Getsockname(fd)
		return os.NewSyscallError("getsockname", err)
	})
	return sa, err
}

// explain turns what the kernel said about an address into a line that names the mend.
func (inv *Inventory) explain(addr Address, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		if pids := inv.left(addr); len(pids) > 0 {
			return fmt.Errorf("listen at %s: %w by what a gapless left behind that was killed: pid %s; end it with: kill %s", addr, ErrAddressInUse,
				strings.Join(pids, ", "), strings.Join(pids, " "))
		}
		by := inv.owner(addr.Network, addr.Addr)
		if by == "" {
			by = "another process"
		}
		return fmt.Errorf("listen at %s: %w by %s: stop it or choose another address", addr, ErrAddressInUse, by)
	case errors.Is(err, unix.EACCES) && addr.Network == NetworkTCP:
		return fmt.Errorf("listen at %s: %w: choose a port above 1023, or grant CAP_NET_BIND_SERVICE", addr, err)
	case errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM):
		return fmt.Errorf("listen at %s: %w: choose a directory that this user may write to", addr, err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("listen at %s: %w: choose an address that this machine has", addr, err)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("listen at %s: %w: create its directory first", addr, err)
	default:
		return fmt.Errorf("listen at %s: %w", addr, err)
	}
}

// attachError says that the kernel took the socket but not the program.
type attachError struct{ err error }

func (e *attachError) Error() string { return "the kernel refuses the program: " + e.err.Error() }
func (e *attachError) Unwrap() error { return e.err }

// How a socket joins its SO_REUSEPORT group.
const (
	claimExclusively = false // alone: a socket that is there already, of any group, is EADDRINUSE
	joinSiblings     = true
)

// listenTCP opens a listening socket. A socket that claims its address exclusively has SO_REUSEPORT neither when it is
// bound nor when it begins to listen: so a second gapless of the same user is refused instead of joining the group,
// even one that starts at the same moment, whose bind succeeds as long as nobody listens. With steer, the socket may get
// siblings afterwards, and carries the program that gives everything to index 0, itself, from before it listens, so
// that siblings get nothing unasked. The kernel takes a program only with SO_REUSEPORT set, hence the back and forth.
//
// The socket blocks until add has given it to Files, so that no *os.File of it joins the runtime's poller.
func listenTCP(sa unix.Sockaddr, join, steer bool) (*os.File, error) {
	family := unix.AF_INET
	if _, ok := sa.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP) // never IPPROTO_MPTCP
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := listenOn(fd, sa, join, steer); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "listener"), nil
}

func listenOn(fd int, sa unix.Sockaddr, join, steer bool) error {
	options := []option{{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1}, {unix.IPPROTO_TCP, unix.TCP_NODELAY, 1}}
	if v6, ok := sa.(*unix.SockaddrInet6); ok {
		only := 1
		if isWildcard(v6) {
			only = 0
		}
		options = append(options, option{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only})
	}
	if join {
		options = append(options, option{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1})
	}
	if err := setOptions(fd, options); err != nil {
		return err
	}
	if err := unix.Bind(fd, sa); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if join || !steer {
		return os.NewSyscallError("listen", unix.Listen(fd, somaxconn()))
	}
	reusePort := func(on int) error { return setOptions(fd, []option{{unix.SOL_SOCKET, unix.SO_REUSEPORT, on}}) }
	first, err := program([]target{{index: 0, weight: 1}})
	if err != nil {
		return err
	}
	if err := reusePort(1); err != nil {
		return err
	}
	if err := attachFd(fd, first); err != nil {
		return &attachError{err}
	}
	if err := reusePort(0); err != nil {
		return err
	}
	if err := unix.Listen(fd, somaxconn()); err != nil {
		return os.NewSyscallError("listen", err)
	}
	return reusePort(1)
}

type option struct{ level, name, value int }

func setOptions(fd int, options []option) error {
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return nil
}

// openSibling opens another socket of the group that first belongs to. It gets no connection, as the group's program
// does not name it yet.
func openSibling(addr Address, first *os.File) (*os.File, error) {
	sa, err := socketName(first)
	if err != nil {
		return nil, err
	}
	file, err := listenTCP(sa, joinSiblings, true)
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", addr, err)
	}
	return file, nil
}

// socketAddress returns the kernel's form of a canonical IP:PORT.
func socketAddress(addr string) (unix.Sockaddr, error) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	if ap.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}, nil
	}
	sa := &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
	if zone := ap.Addr().Zone(); zone != "" {
		if number, err := strconv.ParseUint(zone, 10, 32); err == nil {
			sa.ZoneId = uint32(number)
		} else {
			device, err := net.InterfaceByName(zone)
			if err != nil {
				return nil, fmt.Errorf("network device %s: %w", zone, err)
			}
			sa.ZoneId = uint32(device.Index)
		}
	}
	return sa, nil
}

func isWildcard(sa *unix.SockaddrInet6) bool { return sa.Addr == [16]byte{} }

// localAddress returns the canonical IP:PORT that a socket is bound to.
func localAddress(file *os.File) (string, error) {
	sa, err := socketName(file)
	if err != nil {
		return "", err
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String(), nil
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(sa.Addr)
		if sa.ZoneId != 0 {
			zone := strconv.FormatUint(uint64(sa.ZoneId), 10)
			if device, err := net.InterfaceByIndex(int(sa.ZoneId)); err == nil {
				zone = device.Name
			}
			ip = ip.WithZone(zone)
		}
		return netip.AddrPortFrom(ip, uint16(sa.Port)).String(), nil
	default:
		return "", fmt.Errorf("the socket is not of IPv4 or IPv6 but %T", sa)
	}
}

// boundAddress is addr with the network and address of its socket, or addr itself where the socket has none to tell.
func boundAddress(addr Address, file *os.File) Address {
	if addr.Network != NetworkFD {
		return addr // known since the claim; the file of a unix socket was renamed after it was bound
	}
	sa, err := socketName(file)
	if err != nil {
		return addr
	}
	if u, ok := sa.(*unix.SockaddrUnix); ok {
		return Address{Name: addr.Name, Network: NetworkUnix, Addr: u.Name}
	}
	if text, err := localAddress(file); err == nil {
		return Address{Name: addr.Name, Network: NetworkTCP, Addr: text}
	}
	return addr
}

// somaxconn is the largest backlog that the kernel grants.
func somaxconn() int {
	text, err := os.ReadFile("/proc/sys/net/core/somaxconn")
	if err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && n > 0 {
			return min(n, 1<<16-1)
		}
	}
	return unix.SOMAXCONN
}

func socketInode(file *os.File) (uint64, error) {
	var st unix.Stat_t
	err := withFd(file, func(fd int) error { return os.NewSyscallError("fstat", unix.Fstat(fd, &st)) })
	if err != nil {
		return 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return 0, errors.New("the descriptor is not a socket")
	}
	return st.Ino, nil
}

// prepareInherited puts a socket in order that no worker has had yet. O_NONBLOCK belongs to all holders together: once a
// worker has a lane it is set as that worker wants it.
func prepareInherited(file *os.File) error {
	return withFd(file, func(fd int) error {
		unix.CloseOnExec(fd)
		return os.NewSyscallError("fcntl", unix.SetNonblock(fd, true))
	})
}

// closeOnExec marks a lane that came from another process: the mark is lost on the way.
func closeOnExec(file *os.File) error {
	return withFd(file, func(fd int) error {
		unix.CloseOnExec(fd)
		return nil
	})
}
