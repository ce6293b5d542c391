package gapless

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gapless/internal/testwait"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// noEnv is a process without a manager.
func noEnv(t testing.TB) *process {
	t.Helper()
	p := newProcess(1, func(string) (string, bool) { return "", false }, func(string) error { return nil })
	t.Cleanup(p.end)
	return p
}

// serveOn runs srv on a listener of its own and returns its address.
func serveOn(t testing.TB, p *process, name string, srv *http.Server) (addr string, done chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	p.listeners = append(p.listeners, &inherited{Listener: l, name: name})
	p.mu.Unlock()
	done = make(chan error, 1)
	srv.Addr = name
	go func() { done <- p.serve(srv) }()
	return l.Addr().String(), done
}

func await(t testing.TB, done chan error) {
	t.Helper()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Serve has not returned")
	}
}

func TestServe_DrainAnswersIdleConnectionsOnceMore(t *testing.T) {
	p := noEnv(t)
	addr, done := serveOn(t, p, "web", &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "hi")
	})})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ask := func() string {
		t.Helper()
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	if got := ask(); strings.Contains(got, "close") {
		t.Fatalf("before: %s", got)
	}
	p.orderStop()
	testwait.Until(t, "the server drains", func() bool { return p.servers[0].mode.Load() != modeServing })
	if got := ask(); !strings.Contains(got, "Connection: close") || !strings.HasSuffix(got, "hi") {
		t.Fatalf("draining: %s", got)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("after: %v", err)
	}
	await(t, done)
}

func dialN(t *testing.T, addr string, n int) []net.Conn {
	t.Helper()
	var cs []net.Conn
	for range n {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
		cs = append(cs, c)
	}
	t.Cleanup(func() {
		for _, c := range cs {
			_ = c.Close()
		}
	})
	return cs
}
