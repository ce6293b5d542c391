package gapless

import (
	"errors"
	"io"

	"net/http"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"gapless/internal/testwait"
)

// Connections that have come from elsewhere and say nothing cost a descriptor and no goroutine, however often they move.
func TestIdleSet_HasNoGoroutineForEach(t *testing.T) {
	const n = 200
	f := newFleet(t, echoing)
	cs := dialN(t, f.addr(), n)
	testwait.Until(t, "all connections are accepted", func() bool { return f.cur.connections() == n })
	before := runtime.NumGoroutine()
	for range 3 {
		f.upgrade()
		testwait.Until(t, "all connections have moved", func() bool { return f.cur.connections() == n })
	}
	testwait.Until(t, "no goroutine is left of those that served them", func() bool { return runtime.NumGoroutine() < before-n/2 })
	for _, c := range cs {
		a := newAsker(c)
		a.send(t, get)
		if g, _ := a.answer(t); g != "4" {
			t.Fatalf("answered by generation %s", g)
		}
	}
}

func (m *member) connections() (n int) {
	m.p.mu.Lock()
	defer m.p.mu.Unlock()
	for _, s := range m.p.servers {
		n += s.count()
	}
	return n
}

// What has moved and stays idle ends with the server's IdleTimeout, and not before.
func TestIdleSet_Expires(t *testing.T) {
	const idle = 300 * time.Millisecond
	f := newFleet(t, func(g int) *http.Server {
		s := echoing(g)
		if g > 1 {
			s.IdleTimeout = idle
		}
		return s
	})
	cs := dialN(t, f.addr(), 20)
	testwait.Until(t, "all connections are accepted", func() bool { return f.cur.connections() == len(cs) })
	began := time.Now()
	f.upgrade()
	for i, c := range cs {
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatalf("connection %d: %v, want its end", i, err)
		}
	}
	if took := time.Since(began); took < idle {
		t.Errorf("ended after %v, before the timeout of %v", took, idle)
	}
	testwait.Until(t, "the worker has forgotten them", func() bool { return f.cur.connections() == 0 })
}

// A full stop ends them, and serves the one that has sent a request by then.
func TestIdleSet_FullStop(t *testing.T) {
	f := newFleet(t, echoing)
	cs := dialN(t, f.addr(), 50)
	testwait.Until(t, "all connections are accepted", func() bool { return f.cur.connections() == len(cs) })
	f.upgrade()
	testwait.Until(t, "all connections have moved", func() bool { return f.cur.connections() == len(cs) })
	f.cur.p.orderStop()
	a := newAsker(cs[0])
	a.send(t, get)
	resp, err := http.ReadResponse(a.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if g := resp.Header.Get("X-Generation"); g != "2" {
		t.Errorf("answered by generation %s", g)
	}
	for i, c := range cs[1:] {
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("connection %d: %v, want its end", i, err)
		}
	}
	await(t, f.cur.done)
	f.cur.done <- nil // for the fleet's own wait
}

// Whether there is room for descriptors is seen by the highest numbers, and where one of those is in use, by trying.
func TestCanOpen(t *testing.T) {
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	if !topIsFree(spareFDs) || !canOpen(spareFDs) {
		t.Error("a process with few files has no room")
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	top := int(lim.Cur) - 1
	if err := syscall.Dup3(int(f.Fd()), top, syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(top)
	if topIsFree(spareFDs) {
		t.Error("the highest number is in use, and counts as free")
	}
	if !canOpen(spareFDs) {
		t.Error("one high number in use means that there is no room")
	}
}
