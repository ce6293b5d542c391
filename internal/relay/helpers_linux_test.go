package relay

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"gapless/internal/packet"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a relay in this process until the test ends. done carries what Run returned.
func start(t *testing.T) (master *Client, done <-chan error, cut context.CancelFunc) {
	t.Helper()
	return startWith(t, Config{})
}

func startWith(t *testing.T, cfg Config) (master *Client, done <-chan error, cut context.CancelFunc) {
	t.Helper()
	a, b, err := packet.Pair()
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]*packet.Conn, 2)
	for i, f := range []*os.File{a, b} {
		if conns[i], err = packet.New(f); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cut := context.WithCancel(context.Background())
	result := make(chan error, 1)
	var running sync.WaitGroup
	cfg.Orders = conns[1]
	running.Go(func() { result <- Run(ctx, cfg) })
	master = NewClient(conns[0])
	t.Cleanup(func() { cut(); running.Wait(); _ = master.Close() })
	return master, result, cut
}

// listen opens a listener that ends with the test, and returns a file of it as well.
func listen(t *testing.T, network, addr string) (net.Listener, *os.File) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	conn, ok := l.(syscall.Conn)
	if !ok {
		t.Fatalf("%T", l)
	}
	f, err := packet.Dup(conn, "listener")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close(); _ = f.Close() })
	return l, f
}

func dial(t *testing.T, l net.Listener) stream {
	t.Helper()
	d := net.Dialer{Timeout: 10 * time.Second}
	c, err := d.DialContext(t.Context(), l.Addr().Network(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	s, ok := c.(stream)
	if !ok {
		t.Fatalf("%T", c)
	}
	return s
}

// serve answers every connection of a listener by f until the test ends.
func serve(t *testing.T, l net.Listener, f func(stream)) {
	t.Helper()
	var done sync.WaitGroup
	done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			done.Go(func() { f(c.(stream)); _ = c.Close() })
		}
	})
	t.Cleanup(func() { _ = l.Close(); done.Wait() })
}

func echo(c stream) { _, _ = io.Copy(c, c) }

func target(l net.Listener) Target {
	return Target{Listener: "web", Network: l.Addr().Network(), Addr: l.Addr().String()}
}

func ends(t *testing.T, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the relay does not end")
	}
}
