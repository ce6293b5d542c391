package gapless

import (
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gapless/internal/testwait"
)

// Connections of a unix socket move like those of TCP, whatever is sent on
// them at that moment.
func TestHandoff_UnixSockets(t *testing.T) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	f := newFleetOn(t, l, echoing)
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("unix", f.addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
		return c
	}
	var idle []asker
	for range 50 {
		idle = append(idle, newAsker(dial()))
	}
	for _, a := range idle[:25] { // the others stay silent
		a.send(t, get)
		a.answer(t)
	}
	stop := make(chan struct{})
	var answered atomic.Int64
	var wg sync.WaitGroup
	for i := range 30 {
		c := dial()
		wg.Go(func() {
			if err := talk(c, uint64(i), stop, 5*time.Millisecond, &answered); err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
		})
	}
	for range 5 {
		before := answered.Load()
		f.upgrade()
		testwait.Until(t, "traffic goes on", func() bool { return answered.Load() > before+50 || t.Failed() })
	}
	close(stop)
	wg.Wait()
	for i, a := range idle {
		a.send(t, get)
		if g, _ := a.answer(t); g != "6" {
			t.Errorf("idle connection %d is answered by generation %s", i, g)
		}
	}
}
