package procfs

import (
	"bufio"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// The states of a socket in a table like /proc/net/tcp.
const (
	tcpEstablished = "01"
	tcpCloseWait   = "08"
	tcpListen      = "0A"
)

// tcpSocket is a row of such a table.
type tcpSocket struct {
	local netip.AddrPort
	state string
	inode uint64
}

// Elsewhere returns the TCP addresses at which a process or its descendants listen with sockets other than these, in order. What
// may not be looked at is left out: it serves to explain what went wrong.
func Elsewhere(pid int, inodes map[uint64]bool) []string {
	open := openSockets(pid)
	var found []netip.AddrPort
	tcpSockets(pid, func(s tcpSocket) bool {
		if s.state != tcpListen {
			return false // listening sockets come first
		}
		if open[s.inode] && !inodes[s.inode] {
			found = append(found, s.local)
		}
		return true
	})
	slices.SortFunc(found, netip.AddrPort.Compare)
	var addrs []string
	for _, a := range slices.Compact(found) {
		addrs = append(addrs, a.String())
	}
	return addrs
}

// Took reports whether a process or one of its descendants has open a TCP connection that was made to one of these
// listening sockets: it, or another process that has handed the connection on to it, has accepted from there. It reads all
// connections of the network namespace, so it is nothing to ask often.
func Took(pid int, inodes map[uint64]bool) bool {
	open := openSockets(pid)
	others := false
	for inode := range open {
		others = others || !inodes[inode]
	}
	if !others {
		return false
	}
	var at []netip.AddrPort
	took := false
	tcpSockets(pid, func(s tcpSocket) bool {
		switch s.state {
		case tcpListen:
			if inodes[s.inode] {
				at = append(at, s.local)
			}
		case tcpEstablished, tcpCloseWait:
			took = took || open[s.inode] && slices.ContainsFunc(at, func(a netip.AddrPort) bool { return conflict(a, s.local) })
		}
		return !took
	})
	return took
}

// openSockets are the inodes of the sockets that a process and its descendants have open, as far as they may be seen.
func openSockets(pid int) map[uint64]bool {
	inodes := map[uint64]bool{}
	descendants, _ := Descendants(pid) // fewer are seen then
	for _, s := range append(descendants, Stat{PID: pid}) {
		fds, err := numbers(path(s.PID, "fd"))
		if err != nil {
			continue
		}
		for _, fd := range fds {
			link, err := os.Readlink(path(s.PID, "fd", strconv.Itoa(fd)))
			if ino, ok := strings.CutPrefix(link, "socket:["); err == nil && ok {
				if n, err := strconv.ParseUint(strings.TrimSuffix(ino, "]"), 10, 64); err == nil {
					inodes[n] = true
				}
			}
		}
	}
	return inodes
}

// tcpSockets calls f with each TCP socket of the network namespace of a process, those that listen first among those of IPv4
// and among those of IPv6; false ends the table.
func tcpSockets(pid int, f func(tcpSocket) bool) {
	for _, table := range []string{"tcp", "tcp6"} {
		file, err := os.Open(path(pid, "net", table))
		if err != nil {
			continue // no IPv6, for one
		}
		const address, state, inode = 1, 3, 9
		lines := bufio.NewScanner(file)
		lines.Scan() // heading
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) <= inode {
				break
			}
			local, ok := parseAddr(fields[address])
			n, err := strconv.ParseUint(fields[inode], 10, 64)
			if ok && err == nil && !f(tcpSocket{local, fields[state], n}) {
				break
			}
		}
		file.Close()
	}
}
