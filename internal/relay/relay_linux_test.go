package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"gapless/internal/handoff"
	"gapless/internal/packet"

	"golang.org/x/sys/unix"
)

func TestRelay_CarriesBothWays(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	for _, addr := range []struct{ network, addr string }{
		{"tcp", "127.0.0.1:0"},
		{"tcp", "[::1]:0"},
		{"tcp4", "0.0.0.0:0"},
		{"tcp", "[::]:0"},
		{"unix", filepath.Join(t.TempDir(), "s")},
	} {
		t.Run(addr.addr, func(t *testing.T) {
			master, done, _ := start(t)
			free, freeFile := listen(t, "tcp", "127.0.0.1:0")
			active, _ := listen(t, addr.network, addr.addr)
			serve(t, active, echo)
			const n = 20
			var clients sync.WaitGroup
			for range n {
				c := dial(t, free)
				clients.Go(func() {
					clients.Go(func() {
						if _, err := c.Write(big); err != nil {
							t.Error(err)
						}
						if err := c.CloseWrite(); err != nil { // the echo ends only if this is passed on
							t.Error(err)
						}
					})
					if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, big) {
						t.Errorf("%d bytes back, %v", len(got), err)
					}
				})
			}
			if err := master.Sweep(target(active), freeFile); err != nil {
				t.Fatal(err)
			}
			if err := master.Drain(); err != nil {
				t.Fatal(err)
			}
			clients.Wait()
			ends(t, done)
			var last Status
			for {
				s, err := master.Status()
				if err != nil {
					break
				}
				last = s
			}
			if want := (Status{Taken: n}); last != want {
				t.Errorf("last status %+v, want %+v", last, want)
			}
		})
	}
}

func TestRelay_HandsOffWithTheClientsAddress(t *testing.T) {
	master, done, _ := start(t)
	free, freeFile := listen(t, "tcp", "127.0.0.1:0")
	active, _ := listen(t, "tcp", "127.0.0.1:0")
	serve(t, active, func(c stream) { _, _ = io.WriteString(c, "relayed") })
	recv, send, err := handoff.NewPair()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = send.Close() }()
	receiver, err := handoff.NewReceiver(recv)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = receiver.Close() }()
	if err := master.UseQueue(send); err != nil {
		t.Fatal(err)
	}
	client := dial(t, free)
	if _, err := io.WriteString(client, "early"); err != nil {
		t.Fatal(err)
	}
	if err := master.Sweep(target(active), freeFile); err != nil {
		t.Fatal(err)
	}
	got, err := receiver.Receive()
	if err != nil {
		t.Fatal(err)
	}
	server, err := got.NetConn()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	if got.Listener != "web" || server.RemoteAddr().String() != client.LocalAddr().String() {
		t.Fatalf("listener %q, peer %s; want web, %s", got.Listener, server.RemoteAddr(), client.LocalAddr())
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(server, buf); err != nil || string(buf) != "early" {
		t.Fatalf("read %q, %v", buf, err)
	}
	// Without a queue again, it is relayed.
	if err := master.UseQueue(nil); err != nil {
		t.Fatal(err)
	}
	second := dial(t, free)
	if err := master.Sweep(target(active), freeFile); err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(second); string(text) != "relayed" || err != nil {
		t.Fatalf("read %q, %v", text, err)
	}
	_ = second.Close()
	if err := master.Drain(); err != nil {
		t.Fatal(err)
	}
	ends(t, done)
}

func TestRelay_CarriesGivenConnections(t *testing.T) {
	master, done, _ := start(t)
	free, _ := listen(t, "tcp", "127.0.0.1:0")
	active, _ := listen(t, "tcp", "127.0.0.1:0")
	serve(t, active, echo)
	client := dial(t, free)
	accepted, err := free.Accept()
	if err != nil {
		t.Fatal(err)
	}
	f, err := packet.Dup(accepted.(stream), "connection")
	if err != nil {
		t.Fatal(err)
	}
	if err := master.Carry(target(active), f); err != nil {
		t.Fatal(err)
	}
	_, _ = f.Close(), accepted.Close()
	if err := master.Close(); err != nil { // no order any more: it drains by itself
		t.Fatal(err)
	}
	if _, err := io.WriteString(client, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		t.Fatalf("it ended while it carried: %v", err)
	default:
	}
	_ = client.Close()
	ends(t, done)
}

func TestRelay_PassesOnHowAConnectionEnds(t *testing.T) {
	for _, tc := range []struct {
		name   string
		server func(stream)
		client func(*testing.T, stream)
	}{
		{"the server resets", func(c stream) { _, _ = c.Read(make([]byte, 1)); reset(c) }, func(t *testing.T, c stream) {
			if _, err := io.WriteString(c, "xyz"); err != nil {
				t.Error(err)
			}
			if text, _ := io.ReadAll(c); len(text) > 0 {
				t.Errorf("read %q", text)
			}
		}},
		{"the client resets", echo, func(_ *testing.T, c stream) { reset(c) }},
		{"the server answers early", func(c stream) {
			_, _ = io.WriteString(c, "413")
			_ = c.CloseWrite()
			_, _ = io.Copy(io.Discard, c)
		}, func(t *testing.T, c stream) {
			if text, err := io.ReadAll(c); string(text) != "413" || err != nil {
				t.Errorf("read %q, %v", text, err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			master, done, _ := start(t)
			free, freeFile := listen(t, "tcp", "127.0.0.1:0")
			active, _ := listen(t, "tcp", "127.0.0.1:0")
			serve(t, active, tc.server)
			c := dial(t, free)
			if err := master.Sweep(target(active), freeFile); err != nil {
				t.Fatal(err)
			}
			tc.client(t, c)
			_ = c.Close()
			if err := master.Drain(); err != nil {
				t.Fatal(err)
			}
			ends(t, done) // a direction that was left open would hold it up
		})
	}
}

func TestRelay_ResetsWhatNobodyTakes(t *testing.T) {
	master, done, _ := start(t)
	free, freeFile := listen(t, "tcp", "127.0.0.1:0")
	gone, goneFile := listen(t, "tcp", "127.0.0.1:0")
	_, _ = gone.Close(), goneFile.Close()
	c := dial(t, free)
	if err := master.Sweep(target(gone), freeFile); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("error %v", err)
	}
	if err := master.Drain(); err != nil {
		t.Fatal(err)
	}
	ends(t, done)
}

func TestRelay_IsCutByItsContext(t *testing.T) {
	master, done, cut := start(t)
	free, freeFile := listen(t, "tcp", "127.0.0.1:0")
	active, _ := listen(t, "tcp", "127.0.0.1:0")
	serve(t, active, echo)
	c := dial(t, free)
	if err := master.Sweep(target(active), freeFile); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cut()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Fatal("still open")
	}
}

func TestRelay_SweepDoesNotBlockOnABlockingSocket(t *testing.T) {
	master, done, _ := start(t)
	active, _ := listen(t, "tcp", "127.0.0.1:0")
	serve(t, active, func(c stream) { _, _ = fmt.Fprint(c, "served") })
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0) // blocking
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer func() { _ = f.Close() }()
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 16)); err != nil {
		t.Fatal(err)
	}
	if err := master.Sweep(target(active), f); err != nil { // nothing waits
		t.Fatal(err)
	}
	if err := master.Drain(); err != nil {
		t.Fatal(err)
	}
	ends(t, done)
}

// TestRelay_SweepsAnActiveSocketOnce: the relay's own connections to the address must not be swept as well.
func TestRelay_SweepsAnActiveSocketOnce(t *testing.T) {
	master, done, _ := start(t)
	active, file := listen(t, "tcp", "127.0.0.1:0")
	c := dial(t, active)
	if err := master.Sweep(target(active), file); err != nil {
		t.Fatal(err)
	}
	for { // the client's connection is taken
		s, err := master.Status()
		if err != nil {
			t.Fatal(err)
		}
		if s.Taken == 1 {
			break
		}
	}
	serve(t, active, func(c stream) { _, _ = io.WriteString(c, "served") })
	if text, err := io.ReadAll(c); string(text) != "served" || err != nil {
		t.Fatalf("read %q, %v", text, err)
	}
	_ = c.Close()
	if err := master.Drain(); err != nil {
		t.Fatal(err)
	}
	ends(t, done)
	for {
		s, err := master.Status()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil || s.Taken != 1 {
			t.Fatalf("status %+v, %v", s, err)
		}
	}
}

// TestRelay_DrainsBySignal: what was ordered before the drain is carried all the same.
func TestRelay_DrainsBySignal(t *testing.T) {
	for range 20 {
		drain := make(chan struct{})
		master, done, _ := startWith(t, Config{Drain: drain})
		free, freeFile := listen(t, "tcp", "127.0.0.1:0")
		active, _ := listen(t, "tcp", "127.0.0.1:0")
		serve(t, active, func(c stream) { _, _ = io.WriteString(c, "served") })
		c := dial(t, free)
		for range 5 {
			if err := master.Sweep(target(active), freeFile); err != nil {
				t.Fatal(err)
			}
		}
		close(drain)
		if text, err := io.ReadAll(c); string(text) != "served" || err != nil {
			t.Fatalf("read %q, %v", text, err)
		}
		_ = c.Close()
		ends(t, done)
	}
}

// TestRelay_OutlivesAMasterThatReadNoReports: the kernel then says "reset" once, before what was sent and the end.
func TestRelay_OutlivesAMasterThatReadNoReports(t *testing.T) {
	master, done, _ := start(t)
	free, freeFile := listen(t, "tcp", "127.0.0.1:0")
	active, _ := listen(t, "tcp", "127.0.0.1:0")
	serve(t, active, echo)
	first := dial(t, free)
	if err := master.Sweep(target(active), freeFile); err != nil {
		t.Fatal(err)
	}
	f, err := master.File()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := packet.Descriptor(f)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10000); n != 1 || err != nil {
		t.Fatalf("no report came: %d, %v", n, err)
	}
	second := dial(t, free)
	if err := master.Sweep(target(active), freeFile); err != nil {
		t.Fatal(err)
	}
	_, _ = f.Close(), master.Close()
	for _, c := range []stream{first, second} {
		if _, err := io.WriteString(c, "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	ends(t, done)
}
