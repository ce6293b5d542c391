package upgrade

import (
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// foreignListener opens a socket as another program would, and returns a blocking descriptor of it.
func foreignListener(t *testing.T, network, addr string, mptcp bool, control func(fd int) error) *os.File {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		ctrlErr := c.Control(func(fd uintptr) { err = control(int(fd)) })
		return errors.Join(ctrlErr, err)
	}}
	lc.SetMultipathTCP(mptcp)
	l, err := lc.Listen(t.Context(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	raw, err := l.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var file *os.File
	if err := raw.Control(func(fd uintptr) {
		dup, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		file = os.NewFile(uintptr(dup), "http")
	}); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	return file
}

func TestClaim_ForeignSockets(t *testing.T) {
	plain := func(int) error { return nil }
	reusePort := func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }
	for _, tc := range []struct {
		name, network, addr string
		mptcp               bool
		control             func(int) error
		mode                Mode
		reason              string
	}{
		{"TCP", "tcp", "127.0.0.1:0", false, plain, ModeSteered, ""},
		{"TCP dual stack", "tcp", "[::]:0", false, plain, ModeSteered, ""},
		{"TCP with ReusePort=yes", "tcp", "127.0.0.1:0", false, reusePort, ModeSteered, ""},
		{"MPTCP", "tcp", "127.0.0.1:0", true, plain, ModePlain, "MPTCP"},
		{"unix", "unix", t.TempDir() + "/s", false, plain, ModePlain, "unix sockets"},
		{"of another user", "tcp", "127.0.0.1:0", false, func(fd int) error { return unix.Fchown(fd, 65534, -1) }, ModePlain, "another user"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.name == "of another user" && os.Geteuid() != 0 {
				t.Log("NOT TESTED: only root can give a socket away; run this test as root")
				return
			}
			file := foreignListener(t, tc.network, tc.addr, tc.mptcp, tc.control)
			if tc.mptcp {
				protocol := 0
				if err := withFd(file, func(fd int) (err error) {
					protocol, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
					return err
				}); err != nil || protocol != unix.IPPROTO_MPTCP {
					t.Fatalf("this kernel gave protocol %d instead of MPTCP, %v", protocol, err)
				}
			}
			inv := newTestInventory(t, newFakeFiles(t), InventoryOptions{Activated: map[string][]*os.File{"http": {file}}})
			if err := inv.Claim(Address{"web", NetworkFD, "http"}, ModeSteered); err != nil {
				t.Fatal(err)
			}
			if _, reason := inv.Steerable("web"); inv.Mode("web") != tc.mode || !strings.Contains(reason, tc.reason) {
				t.Fatalf("mode %s, reason %q", inv.Mode("web"), reason)
			}
			lanes := take(t, inv, 3)
			for _, l := range lanes {
				echoName(t, l)
			}
			at := lanes[0].Bound()
			if bound, ok := inv.Bound("web"); !ok || bound != at || at.Network != tc.network || at.Name != "web" {
				t.Fatalf("bound to %+v and %+v", at, bound)
			}
			for _, l := range lanes {
				if err := inv.Switch(map[string]int{l.Name(): 1}, without(active(inv), l.Name())); err != nil {
					t.Fatal(err)
				}
				for range 10 {
					if got := who(t, at); got != l.Name() {
						t.Fatalf("meant for %s, answered by %s", l.Name(), got)
					}
				}
			}
		})
	}
}

func TestClaim_ForeignSocketsThatCannotBe(t *testing.T) {
	datagram, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	silent, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, mend string
		file       *os.File
	}{
		{"datagram", "ListenStream=", os.NewFile(uintptr(datagram), "http")},
		{"not listening", "Accept=no", os.NewFile(uintptr(silent), "http")},
		{"no socket", "not a socket", null},
		{"absent", "no socket of that name", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			activated := map[string][]*os.File{}
			if tc.file != nil {
				activated["http"] = []*os.File{tc.file}
			}
			inv := newTestInventory(t, newFakeFiles(t), InventoryOptions{Activated: activated})
			err := inv.Claim(Address{"web", NetworkFD, "http"}, ModeSteered)
			if err == nil || !strings.Contains(err.Error(), tc.mend) {
				t.Fatalf("error %v", err)
			}
		})
	}
}

func TestClaim_ForeignSocketWithStrangersInItsGroup(t *testing.T) {
	reusePort := func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }
	first := foreignListener(t, "tcp", "127.0.0.1:0", false, reusePort)
	addr, err := localAddress(first)
	if err != nil {
		t.Fatal(err)
	}
	stranger := foreignListener(t, "tcp", addr, false, reusePort)
	t.Cleanup(func() { _ = stranger.Close() })
	inv := newTestInventory(t, newFakeFiles(t), InventoryOptions{Activated: map[string][]*os.File{"http": {first}}})
	if err := inv.Claim(Address{"web", NetworkFD, "http"}, ModeSteered); err != nil {
		t.Fatal(err)
	}
	if ok, reason := inv.Steerable("web"); ok || !strings.Contains(reason, "other sockets share") {
		t.Fatalf("steerable %v, %q", ok, reason)
	}
}
