package upgrade

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The networks of an Address.
const (
	NetworkTCP  = "tcp"  // Addr is IP:PORT, canonical
	NetworkUnix = "unix" // Addr is an absolute path, or @NAME in the abstract namespace
	NetworkFD   = "fd"   // Addr is the name of a socket that came through LISTEN_FDS
)

const (
	// maxNameLength keeps "lane/NAME#INDEX" below the 255 bytes that systemd allows for the name of a stored descriptor.
	maxNameLength = 64
	// maxUnixPath is the room that sockaddr_un has for a path with its final NUL.
	maxUnixPath = 107
	// resolveTimeout bounds the look-up of a host name in an address.
	resolveTimeout = 5 * time.Second
)

// ErrBadAddress is what every error of ParseAddress and NameAddresses matches.
var ErrBadAddress = errors.New("bad listen address")

// Address is one place to listen at, in canonical form: two addresses that mean the same socket are equal but for Name.
type Address struct {
	// Name is what workers find in LISTEN_FDNAMES: 1 to 64 letters, digits, '-', '_' or '.', the first a letter. It is
	// empty after ParseAddress when the text gave none; NameAddresses fills it in.
	Name string `json:"name"`
	// Network is one of the Network constants.
	Network string `json:"network"`
	// Addr is the address in the form that its network takes. Port 0 stands for a port of the kernel's choice.
	Addr string `json:"addr"`
}

// String returns the address as the user would write it, without its name.
func (a Address) String() string {
	if a.Network == NetworkTCP {
		return a.Addr
	}
	return a.Network + ":" + a.Addr
}

// ParseAddress reads "[NAME=]ADDR", where ADDR is one of
//
//	:8000              every IPv4 and IPv6 address of the machine (one dual-stack socket, [::]:8000)
//	[::]:443           the same
//	0.0.0.0:80         every IPv4 address, and IPv4 only
//	10.0.0.1:80        one address; [::1]:80 and [fe80::1%eth0]:80 likewise
//	localhost:8000     a host name, resolved now; an IPv4 address is preferred
//	unix:/run/app.sock a socket file; a relative path is taken from the current directory
//	unix:@app          a socket in Linux's abstract namespace
//	fd:NAME            the socket of that name in LISTEN_FDNAMES (systemd's FileDescriptorName=)
//
// A port may be a service name ("http"). Errors are one line, name the text and the mend, and match ErrBadAddress.
func ParseAddress(text string) (Address, error) { return parseAddress(text, lookupHost) }

// NameAddresses returns a copy of addrs in which every address has a name: the first that has none is "web", the others
// "web2", "web3" and so on by their place among the unnamed, skipping names that the user took. Two addresses of one
// name, or of one place, are an error.
func NameAddresses(addrs []Address) ([]Address, error) {
	named := make([]Address, len(addrs))
	taken := make(map[string]bool, len(addrs))
	places := make(map[string]bool, len(addrs))
	for i, a := range addrs {
		place := a.String()
		if places[place] && !sharesPlace(a) {
			return nil, fmt.Errorf("%w: %s is given twice: remove one", ErrBadAddress, place)
		}
		places[place] = true
		if a.Name != "" {
			if taken[a.Name] {
				return nil, fmt.Errorf("%w: two addresses are named %q: give each its own name, as in api=:8001", ErrBadAddress, a.Name)
			}
			taken[a.Name] = true
		}
		named[i] = a
	}
	next := 1
	for i := range named {
		for named[i].Name == "" {
			name := "web"
			if next > 1 {
				name += strconv.Itoa(next)
			}
			next++
			if !taken[name] {
				named[i].Name, taken[name] = name, true
			}
		}
	}
	return named, nil
}

// sharesPlace tells the addresses that may be written twice: each port 0 is another port, and systemd gives all
// sockets of one unit the same name.
func sharesPlace(a Address) bool {
	return a.Network == NetworkFD || a.Network == NetworkTCP && strings.HasSuffix(a.Addr, ":0")
}

func parseAddress(text string, resolve func(host string) ([]netip.Addr, error)) (Address, error) {
	bad := func(format string, args ...any) (Address, error) {
		return Address{}, fmt.Errorf("%w %q: %s", ErrBadAddress, text, fmt.Sprintf(format, args...))
	}
	var name string
	addr := text
	// A socket file may have '=' in its path, so what stands before the first one is a name only if it cannot be the
	// beginning of an address.
	if before, after, found := strings.Cut(text, "="); found && !strings.ContainsAny(before, ":/[@") {
		if reason := checkName(before); reason != "" {
			return bad("%s", reason)
		}
		name, addr = before, after
	}
	switch {
	case addr == "":
		return bad("it is empty: write :8000, HOST:PORT, unix:PATH or fd:NAME")
	case strings.ContainsFunc(addr, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return bad("it holds a control character: remove it")
	case strings.HasPrefix(addr, "unix:"):
		path, reason := parseUnix(strings.TrimPrefix(addr, "unix:"))
		if reason != "" {
			return bad("%s", reason)
		}
		return Address{Name: name, Network: NetworkUnix, Addr: path}, nil
	case strings.HasPrefix(addr, "fd:"):
		fdName := strings.TrimPrefix(addr, "fd:")
		if fdName == "" || strings.Contains(fdName, ":") || len(fdName) > 255 {
			return bad("fd: needs the name of a socket in LISTEN_FDNAMES: write fd:NAME, 1 to 255 bytes without a colon")
		}
		return Address{Name: name, Network: NetworkFD, Addr: fdName}, nil
	}
	host, port, reason := splitHostPort(addr)
	if reason != "" {
		return bad("%s", reason)
	}
	if host == "" {
		host = "::"
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		if ip, reason = resolveHost(host, resolve); reason != "" {
			return bad("%s", reason)
		}
	}
	return Address{Name: name, Network: NetworkTCP, Addr: netip.AddrPortFrom(ip.Unmap(), port).String()}, nil
}

func checkName(name string) (reason string) {
	const mend = "a name has 1 to 64 letters, digits, '-', '_' or '.', and begins with a letter, as in api=:8001"
	if name == "" || len(name) > maxNameLength {
		return mend
	}
	for i, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !letter && (i == 0 || (r < '0' || r > '9') && r != '-' && r != '_' && r != '.') {
			return mend
		}
	}
	return ""
}

func parseUnix(path string) (canonical, reason string) {
	if path == "" || path == "@" {
		return "", "unix: needs a path: write unix:/run/app.sock or unix:@NAME"
	}
	if !strings.HasPrefix(path, "@") {
		if last := path[strings.LastIndex(path, "/")+1:]; last == "" || last == "." || last == ".." {
			return "", "it names a directory: add the name of the socket file"
		}
		abs, err := filepath.Abs(path)
		if err != nil {
			return "", fmt.Sprintf("the current directory is unknown (%v): give an absolute path", err)
		}
		path = abs
	}
	if len(path) > maxUnixPath {
		return "", fmt.Sprintf("the path has %d bytes and a socket's may have %d: choose a shorter one", len(path), maxUnixPath)
	}
	return path, ""
}

func splitHostPort(addr string) (host string, port uint16, reason string) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		switch _, portErr := strconv.ParseUint(addr, 10, 16); {
		case portErr == nil:
			return "", 0, fmt.Sprintf("a port needs a colon: write :%s, or 127.0.0.1:%s", addr, addr)
		case strings.Count(addr, ":") == 2 && !strings.Contains(addr, "::") && !strings.HasPrefix(addr, "["):
			return "", 0, "it has two ports: write HOST:PORT, as in 127.0.0.1:8000 or [::1]:8000"
		case strings.Count(addr, ":") > 1 && !strings.HasPrefix(addr, "["):
			return "", 0, "an IPv6 address needs brackets: write [::1]:8000"
		case strings.HasPrefix(addr, "/") || strings.HasPrefix(addr, "@"):
			return "", 0, fmt.Sprintf("a socket file needs its network: write unix:%s", addr)
		default:
			return "", 0, "no port: write HOST:PORT, as in 127.0.0.1:8000 or [::1]:8000"
		}
	}
	number, err := strconv.ParseUint(text, 10, 16)
	if err == nil {
		return host, uint16(number), ""
	}
	if named, lookupErr := net.LookupPort("tcp", text); text != "" && lookupErr == nil && named > 0 {
		return host, uint16(named), ""
	}
	return "", 0, fmt.Sprintf("%q is no port: choose a number from 0 to 65535", text)
}

func resolveHost(host string, resolve func(string) ([]netip.Addr, error)) (ip netip.Addr, reason string) {
	ips, err := resolve(host)
	for _, candidate := range ips {
		if candidate = candidate.Unmap(); candidate.Is4() {
			return candidate, ""
		}
	}
	switch {
	case len(ips) > 0:
		return ips[0], ""
	case host == "localhost":
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), "" // RFC 6761 gives it this meaning without any resolver
	case err != nil:
		return ip, fmt.Sprintf("host %q does not resolve (%v): check the name or give an IP address", host, err)
	default:
		return ip, fmt.Sprintf("host %q has no IP address: check the name or give an IP address", host)
	}
}

func lookupHost(host string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(context.Background(), resolveTimeout)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", host, err)
	}
	return ips, nil
}

// samePlace says whether a configured address is the one that is held, whose port is resolved.
func samePlace(configured, held Address) bool {
	if configured.Network == NetworkTCP && held.Network == NetworkTCP {
		return configured.Addr == held.Addr || portless(configured.Addr) == portless(held.Addr) && strings.HasSuffix(configured.Addr, ":0")
	}
	return configured.Network == held.Network && configured.Addr == held.Addr
}

func portless(addr string) string { return addr[:strings.LastIndex(addr, ":")+1] }

// Unchanged returns an error that matches ErrBadAddress if an address is configured that is not among those held, the open
// ones: sockets are opened at the first start only. The path of a unix socket may have been written relative to a directory
// that has moved since, so it is not compared. Without held ones nothing is known, and nothing is wrong.
func Unchanged(configured, held []Address) error {
	if len(held) == 0 {
		return nil
	}
	for _, c := range configured {
		i := slices.IndexFunc(held, func(h Address) bool { return h.Name == c.Name })
		if i < 0 {
			return fmt.Errorf("%w: %q (%s) was not opened at the start, and cannot be while gapless runs: restart it, or leave the address out", ErrBadAddress, c.Name, c)
		}
		if c.Network == NetworkUnix && held[i].Network == NetworkUnix || samePlace(c, held[i]) {
			continue
		}
		return fmt.Errorf("%w: %q is %s and cannot become %s while gapless runs: restart it, or set the address back", ErrBadAddress, c.Name, held[i], c)
	}
	return nil
}
