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

// PreviewDialer returns a dialer whose connections an address's preview rule recognizes, and the network and address to
// dial with it. timeout bounds each dial, 0 not at all. An address that cannot be steered has no preview.
func (inv *Inventory) PreviewDialer(address string, timeout time.Duration) (dialer *net.Dialer, network, addr string, err error) {
	if ok, reason := inv.Steerable(address); !ok {
		return nil, "", "", fmt.Errorf("preview of %s: its connections cannot be steered: %s", address, reason)
	}
	bound, _ := inv.Bound(address)
	at, err := netip.ParseAddrPort(bound.Addr)
	if err != nil {
		return nil, "", "", fmt.Errorf("preview of %s: %w", address, err)
	}
	dialer = &net.Dialer{Timeout: timeout}
	dialer.SetMultipathTCP(false)
	if at.Addr().Is4() || at.Addr().IsUnspecified() {
		ip := at.Addr()
		if ip.IsUnspecified() {
			ip = netip.AddrFrom4([4]byte{127, 0, 0, 1}) // a dual-stack socket takes IPv4, too
		}
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(PreviewIPv4)}
		return dialer, "tcp4", net.JoinHostPort(ip.String(), strconv.Itoa(int(at.Port()))), nil
	}
	dialer.LocalAddr = &net.TCPAddr{IP: net.IPv6loopback}
	dialer.Control = func(_, _ string, c syscall.RawConn) error {
		var setErr error
		err := c.Control(func(fd uintptr) {
			setErr = setOptions(int(fd), []option{{unix.IPPROTO_IPV6, unix.IPV6_TCLASS, PreviewClass}})
		})
		return errors.Join(err, setErr)
	}
	return dialer, "tcp6", at.String(), nil
}
