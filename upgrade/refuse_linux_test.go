package upgrade

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// A full stop: who was connected before is served to the end, who comes after is turned away.
func TestInventory_RefuseKeepsWhatIsQueued(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0"} {
		t.Run(addr, func(t *testing.T) {
			inv := NewInventory(noFiles{}, InventoryOptions{})
			a, err := ParseAddress("web=" + addr)
			if err != nil {
				t.Fatal(err)
			}
			if err := inv.Claim(a, ModeSteered); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { inv.Close() })
			lane := inv.Lanes("web")[0]
			_, port, err := net.SplitHostPort(lane.Bound().Addr)
			if err != nil {
				t.Fatal(err)
			}
			host := "127.0.0.1"
			if addr == "[::1]:0" {
				host = "::1"
			}
			at := net.JoinHostPort(host, port)
			before, err := net.Dial("tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			defer before.Close()
			if err := inv.Refuse(); err != nil {
				t.Fatal(err)
			}
			late, err := net.DialTimeout("tcp", at, 100*time.Millisecond)
			if timeout := net.Error(nil); !errors.As(err, &timeout) || !timeout.Timeout() {
				if late != nil {
					late.Close()
				}
				t.Fatalf("a new client: %v, want no answer", err)
			}
			f, err := lane.Accept()
			if err != nil || f == nil {
				t.Fatalf("the queued connection: %v, %v", f, err)
			}
			conn, err := net.FileConn(f)
			f.Close()
			if err != nil {
				t.Fatal(err)
			}
			if err := inv.Shutdown(); err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = before.Write([]byte("hello")); before.(*net.TCPConn).CloseWrite() }()
			if got, err := io.ReadAll(conn); string(got) != "hello" || err != nil {
				t.Fatalf("through the filter: %q, %v", got, err)
			}
			conn.Close()
			if late, err := net.DialTimeout("tcp", at, time.Second); err == nil {
				late.Close()
				t.Fatal("after the shutdown a client still connects")
			}
		})
	}
}
