package upgrade

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// vishvananda/netlink asks for the sockets of all ports and of all states but the half-open ones, and walks the whole
// table with its TIME_WAITs for it; the question here is one port's half-open and open connections. So the request is
// made by hand: the kernel filters by port and state.

// The states that a dump can ask for, as bits.
const (
	stateEstablished = 1 << 1
	stateSynRecv     = 1<<3 | 1<<12 // a half-open connection has a state of its own, TCP_NEW_SYN_RECV
	stateCloseWait   = 1 << 8
	stateListen      = 1 << 10
)

// connection is one socket in a dump.
type connection struct {
	local, remote netip.AddrPort
	state         uint8
	inode         uint32 // 0 while nobody has accepted it
	unread        uint32 // bytes that wait to be read; for a listening socket the accept queue
	received      uint64 // bytes received since it was opened, read or not
}

const (
	netlinkHeader = 16
	inetDiagMsg   = 72 // struct inet_diag_msg
	inetDiagReq   = 56 // struct inet_diag_req_v2
	infoExtension = 2  // INET_DIAG_INFO
	// receivedOffset is where tcpi_bytes_received stands in struct tcp_info (Linux 4.1).
	receivedOffset = 128
)

// dump lists the TCP sockets of this network namespace that are bound to a local port and in one of the states. An IPv6
// dump contains the IPv4 connections of dual-stack sockets, as IPv4-mapped addresses; they are unmapped here.
func dump(family uint8, port uint16, states uint32) ([]connection, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	// A dump that does not end must not stop a drain.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	request := make([]byte, netlinkHeader+inetDiagReq)
	native := binary.NativeEndian
	native.PutUint32(request[0:], uint32(len(request)))
	native.PutUint16(request[4:], unix.SOCK_DIAG_BY_FAMILY)
	native.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	native.PutUint32(request[8:], 1)
	body := request[netlinkHeader:]
	body[0], body[1], body[2] = family, unix.IPPROTO_TCP, 1<<(infoExtension-1)
	native.PutUint32(body[4:], states)
	binary.BigEndian.PutUint16(body[8:], port)
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("send to sock_diag", err)
	}
	var found []connection
	buf := make([]byte, 1<<15) // the kernel's own limit for a part of a dump
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("receive from sock_diag", err)
		}
		var done bool
		if found, done, err = parseDump(buf[:n], found); err != nil || done {
			return found, err
		}
	}
}

// parseDump appends the sockets in one packet of a dump and says whether it was the last.
func parseDump(packet []byte, found []connection) (_ []connection, done bool, err error) {
	native := binary.NativeEndian
	for len(packet) >= netlinkHeader {
		size := int(native.Uint32(packet))
		if size < netlinkHeader || size > len(packet) {
			return nil, true, fmt.Errorf("sock_diag: a message of %d bytes in a packet of %d", size, len(packet))
		}
		body := packet[netlinkHeader:size]
		switch native.Uint16(packet[4:]) {
		case unix.NLMSG_DONE:
			return found, true, nil
		case unix.NLMSG_ERROR:
			if len(body) >= 4 {
				if errno := -int32(native.Uint32(body)); errno > 0 {
					return nil, true, os.NewSyscallError("sock_diag", unix.Errno(errno))
				}
			}
			return nil, true, errors.New("sock_diag: an error without a number")
		case unix.SOCK_DIAG_BY_FAMILY:
			c, err := parseConnection(body)
			if err != nil {
				return nil, true, err
			}
			found = append(found, c)
		}
		packet = packet[min((size+3)&^3, len(packet)):]
	}
	return found, false, nil
}

func parseConnection(msg []byte) (c connection, err error) {
	if len(msg) < inetDiagMsg {
		return c, fmt.Errorf("sock_diag: a socket of %d bytes", len(msg))
	}
	native := binary.NativeEndian
	ip := func(at int) netip.Addr {
		if msg[0] == unix.AF_INET {
			return netip.AddrFrom4([4]byte(msg[at : at+4]))
		}
		return netip.AddrFrom16([16]byte(msg[at : at+16])).Unmap()
	}
	c = connection{
		local:  netip.AddrPortFrom(ip(8), binary.BigEndian.Uint16(msg[4:])),
		remote: netip.AddrPortFrom(ip(24), binary.BigEndian.Uint16(msg[6:])),
		state:  msg[1],
		unread: native.Uint32(msg[56:]),
		inode:  native.Uint32(msg[68:]),
	}
	for attrs := msg[inetDiagMsg:]; len(attrs) >= 4; {
		size := int(native.Uint16(attrs))
		if size < 4 || size > len(attrs) {
			break
		}
		if native.Uint16(attrs[2:]) == infoExtension && size >= 4+receivedOffset+8 {
			c.received = native.Uint64(attrs[4+receivedOffset:])
		}
		attrs = attrs[min((size+3)&^3, len(attrs)):]
	}
	return c, nil
}

// countListeners counts the listening sockets that have the local address of file, itself included.
func countListeners(file *os.File) (int, error) {
	text, err := localAddress(file)
	if err != nil {
		return 0, err
	}
	at, err := netip.ParseAddrPort(text)
	if err != nil {
		return 0, err
	}
	found, err := dump(family(at.Addr()), at.Port(), stateListen)
	n := 0
	for _, c := range found {
		if c.local.Addr() == at.Addr().WithZone("") {
			n++
		}
	}
	return n, err
}

func family(ip netip.Addr) uint8 {
	if ip.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
