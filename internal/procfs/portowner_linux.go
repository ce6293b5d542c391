package procfs

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// PortOwner names the process that listens on an address, as in "pid 812 (nginx)", for the message that the address
// is in use. network is tcp, tcp4, tcp6 or unix; a TCP address may have no host. Of several processes that share the
// socket it is the oldest. It is empty when nobody listens there, when the process may not be seen, or when the address
// cannot be read.
func PortOwner(network, addr string) string {
	holders := PortHolders(network, addr)
	if len(holders) == 0 {
		return ""
	}
	return fmt.Sprintf("pid %d (%s)", holders[0].PID, holders[0].Command)
}

// PortHolders returns the processes that have a socket open that listens on an address, as far as they may be seen, oldest
// first. The address is as for PortOwner.
func PortHolders(network, addr string) []Stat {
	var inodes map[uint64]bool
	switch network {
	case "tcp", "tcp4", "tcp6":
		inodes = tcpListeners(addr)
	case "unix":
		inodes = unixListeners(addr)
	}
	if len(inodes) == 0 {
		return nil
	}
	all, err := Processes()
	if err != nil {
		return nil
	}
	var holders []Stat
	for _, s := range all {
		if holds(s.PID, inodes) {
			holders = append(holders, s)
		}
	}
	slices.SortFunc(holders, func(a, b Stat) int { return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.PID, b.PID)) })
	return holders
}

func holds(pid int, inodes map[uint64]bool) bool {
	fds, err := numbers(path(pid, "fd"))
	if err != nil {
		return false
	}
	for _, fd := range fds {
		link, err := os.Readlink(path(pid, "fd", strconv.Itoa(fd)))
		if err != nil {
			continue
		}
		if ino, ok := strings.CutPrefix(link, "socket:["); ok {
			if n, err := strconv.ParseUint(strings.TrimSuffix(ino, "]"), 10, 64); err == nil && inodes[n] {
				return true
			}
		}
	}
	return false
}

func tcpListeners(addr string) map[uint64]bool {
	want, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil
	}
	ip, _ := netip.AddrFromSlice(want.IP) // none is the zero Addr: any address
	inodes := map[uint64]bool{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(table)
		if err != nil {
			continue // no IPv6, for one
		}
		listeners(f, netip.AddrPortFrom(ip.Unmap(), uint16(want.Port)), inodes)
		f.Close()
	}
	return inodes
}

// listeners adds the sockets of a table like /proc/net/tcp that listen where want would conflict. Listening sockets come
// first in it; the connections behind them, perhaps a hundred thousand, are not read.
func listeners(table io.Reader, want netip.AddrPort, inodes map[uint64]bool) {
	const address, state, inode, listening = 1, 3, 9, "0A"
	lines := bufio.NewScanner(table)
	lines.Scan() // heading
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) <= inode || fields[state] != listening {
			return
		}
		have, ok := parseAddr(fields[address])
		n, err := strconv.ParseUint(fields[inode], 10, 64)
		if ok && err == nil && n != 0 && conflict(have, want) {
			inodes[n] = true
		}
	}
}

func conflict(a, b netip.AddrPort) bool {
	everywhere := func(ip netip.Addr) bool { return !ip.IsValid() || ip.IsUnspecified() }
	return a.Port() == b.Port() && (everywhere(a.Addr()) || everywhere(b.Addr()) || a.Addr().WithZone("") == b.Addr().WithZone(""))
}

// parseAddr reads an address as the kernel prints it: 32-bit words in the machine's byte order, in hex, and the port.
func parseAddr(text string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(text, ":")
	raw, err := hex.DecodeString(host)
	p, portErr := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || portErr != nil || (len(raw) != 4 && len(raw) != 16) {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	ip, _ := netip.AddrFromSlice(raw) // 4 or 16 bytes: cannot fail
	return netip.AddrPortFrom(ip.Unmap(), uint16(p)), true
}

func unixListeners(path string) map[uint64]bool {
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return nil
	}
	defer f.Close()
	const flags, inode, name, accepts = 3, 6, 7, 1 << 16
	inodes := map[uint64]bool{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) <= name {
			continue // has no name
		}
		have := strings.Join(fields[name:], " ") // the last column; a path may hold spaces
		bits, err := strconv.ParseUint(fields[flags], 16, 64)
		n, inoErr := strconv.ParseUint(fields[inode], 10, 64)
		if err == nil && inoErr == nil && bits&accepts != 0 && have == path {
			inodes[n] = true
		}
	}
	return inodes
}
