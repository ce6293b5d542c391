package upgrade

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Route is how a marked connection reaches an address: dial Addr over Network, from Source, with the traffic class Class
// if it is not 0.
type Route struct {
	Network, Addr string
	Source        string // an IP address
	Class         int
}

// PreviewRoute returns how preview connections reach an address. One that cannot be steered has no preview.
func (inv *Inventory) PreviewRoute(address string) (Route, error) {
	return inv.route("preview", address, previewMark())
}

func (inv *Inventory) route(what, address string, m mark) (Route, error) {
	if ok, reason := inv.Steerable(address); !ok {
		return Route{}, fmt.Errorf("%s of %s: its connections cannot be steered: %s", what, address, reason)
	}
	bound, _ := inv.Bound(address)
	at, err := netip.ParseAddrPort(bound.Addr)
	if err != nil {
		return Route{}, fmt.Errorf("%s of %s: %w", what, address, err)
	}
	if at.Addr().Is4() || at.Addr().IsUnspecified() {
		ip := at.Addr()
		if ip.IsUnspecified() {
			ip = netip.AddrFrom4([4]byte{127, 0, 0, 1}) // a dual-stack socket takes IPv4, too
		}
		return Route{Network: "tcp4", Addr: net.JoinHostPort(ip.String(), strconv.Itoa(int(at.Port()))), Source: netip.AddrFrom4(m.ipv4).String()}, nil
	}
	return Route{Network: "tcp6", Addr: at.String(), Source: net.IPv6loopback.String(), Class: int(m.class)}, nil
}

// Dialer returns a dialer whose connections the route's mark is on, to dial the route's Network and Addr with.
func (r Route) Dialer(timeout time.Duration) *net.Dialer {
	dialer := &net.Dialer{Timeout: timeout, LocalAddr: &net.TCPAddr{IP: net.ParseIP(r.Source)}}
	dialer.SetMultipathTCP(false)
	if r.Class != 0 {
		dialer.Control = func(_, _ string, c syscall.RawConn) error {
			var setErr error
			err := c.Control(func(fd uintptr) {
				setErr = setOptions(int(fd), []option{{unix.IPPROTO_IPV6, unix.IPV6_TCLASS, r.Class}})
			})
			return errors.Join(err, setErr)
		}
	}
	return dialer
}

// KnockDialer returns a dialer whose connections SetKnock directs, and the network and address to dial with it. timeout
// bounds each dial, 0 not at all.
func (inv *Inventory) KnockDialer(address string, timeout time.Duration) (dialer *net.Dialer, network, addr string, err error) {
	r, err := inv.route("knock", address, knockMark())
	if err != nil {
		return nil, "", "", err
	}
	return r.Dialer(timeout), r.Network, r.Addr, nil
}
