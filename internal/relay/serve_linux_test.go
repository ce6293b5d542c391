package relay

import (
	"io"
	"net"
	"sync"
	"testing"
)

// peerOnly answers each connection with the address that it sees, and what the client has said before its half close.
func peerOnly(c stream) {
	host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
	said, _ := io.ReadAll(c)
	_, _ = io.WriteString(c, host+" "+string(said))
}

func TestRelay_ServesASocketFromAMarkedSource(t *testing.T) {
	for _, tc := range []struct {
		addr, source string
		class        int
		network      string
	}{
		{"127.0.0.1:0", "127.77.0.1", 0, "tcp4"},
		{"[::1]:0", "::1", 0x5c, "tcp6"},
	} {
		t.Run(tc.addr, func(t *testing.T) {
			master, done, _ := start(t)
			front, frontFile := listen(t, "tcp", "127.0.0.1:0")
			public, _ := listen(t, "tcp", tc.addr)
			serve(t, public, peerOnly)
			to := Target{Listener: "web", Network: tc.network, Addr: public.Addr().String(), Source: tc.source, Class: tc.class}
			if err := master.Serve(to, frontFile); err != nil {
				t.Fatal(err)
			}
			var clients sync.WaitGroup
			for range 50 {
				clients.Go(func() {
					c := dial(t, front)
					_, _ = io.WriteString(c, "hello")
					_ = c.CloseWrite()
					if got, err := io.ReadAll(c); err != nil || string(got) != tc.source+" hello" {
						t.Errorf("answer %q, %v", got, err)
					}
				})
			}
			clients.Wait()
			if err := master.Drain(); err != nil {
				t.Fatal(err)
			}
			ends(t, done)
		})
	}
}

// TestRelay_DrainLeavesTheSocketToOthers: what is in flight is carried to its end, what comes after the drain waits for
// the relay that follows, and both together take everything.
func TestRelay_DrainLeavesTheSocketToOthers(t *testing.T) {
	front, frontFile := listen(t, "tcp", "127.0.0.1:0")
	public, _ := listen(t, "tcp", "127.0.0.1:0")
	serve(t, public, peerOnly)
	to := Target{Listener: "web", Network: "tcp4", Addr: public.Addr().String(), Source: "127.77.0.1"}
	held := dial(t, front) // the first in the queue, and so the first relay's
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c := dial(t, front)
				_ = c.CloseWrite()
				if got, err := io.ReadAll(c); err != nil || string(got) != "127.77.0.1 " {
					t.Errorf("answer %q, %v", got, err)
				}
				_ = c.Close()
			}
		})
	}
	for i := range 20 {
		master, done, _ := start(t)
		if err := master.Serve(to, frontFile); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if _, err := io.WriteString(held, "in flight"); err != nil {
				t.Fatal(err)
			}
		}
		// It has carried something.
		for {
			s, err := master.Status()
			if err != nil {
				t.Fatal(err)
			}
			if s.Taken > 0 {
				break
			}
		}
		if err := master.Drain(); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			ends(t, done)
		}
	}
	// The next relay is there before the clients end.
	master, done, _ := start(t)
	if err := master.Serve(to, frontFile); err != nil {
		t.Fatal(err)
	}
	close(stop)
	clients.Wait()
	_ = held.CloseWrite()
	if got, err := io.ReadAll(held); err != nil || string(got) != "127.77.0.1 in flight" {
		t.Errorf("what was in flight got %q, %v", got, err)
	}
	if err := master.Drain(); err != nil {
		t.Fatal(err)
	}
	ends(t, done)
}
