package nodejs_test

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gapless/internal/channel"
	"gapless/internal/handoff"
)

const minute = time.Minute

// Idle connections leave, those in a request once it is answered; what a client sends meanwhile waits in the kernel.
func TestDrain_GivesConnectionsAwayBetweenRequests(t *testing.T) {
	a := launch(t, echo, setting{})
	fresh, idle, slow := a.dial(), a.dial(), a.dial()
	idle.ask("/0", "one")
	slow.send(request("/300", "slow"))
	a.dial().ask("/0", "they have been accepted")

	r := a.order(channel.Drain{Deadline: minute, Handoff: true})
	var given []*handoff.Conn
	for range 3 {
		given = append(given, a.take(r))
	}
	slow.answer("slow")
	given = append(given, a.take(r))
	if status := a.exits(); status != 0 {
		t.Errorf("status %d", status)
	}
	// They all live: nobody serves them, and nothing was lost of what is sent.
	want := map[string]*client{}
	for _, c := range []*client{fresh, idle, slow} {
		want[c.LocalAddr().String()] = c
	}
	for _, h := range given {
		if h.Listener != "web" || len(h.Pending) != 0 {
			t.Errorf("listener %q with %d bytes", h.Listener, len(h.Pending))
		}
		nc, err := h.NetConn()
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		c := want[nc.RemoteAddr().String()]
		if c == nil {
			continue
		}
		delete(want, nc.RemoteAddr().String())
		c.send("next")
		got := make([]byte, 4)
		if _, err := nc.Read(got); err != nil || string(got) != "next" {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if len(want) != 0 {
		t.Errorf("%d connections were not given away", len(want))
	}
}

// A request of which a part was read is finished here.
func TestDrain_KeepsAConnectionInTheMiddleOfAHead(t *testing.T) {
	a := launch(t, echo, setting{})
	c := a.dial()
	c.ask("/0", "one")
	text := request("/0", "two")
	c.send(text[:30])
	a.dial().ask("/0", "so that it has been read")
	r := a.order(channel.Drain{Deadline: minute, Handoff: true})
	other := a.take(r) // the other one leaves at once
	_ = other.Close()
	c.send(text[30:])
	c.answer("two")
	_ = a.take(r).Close()
	a.exits()
}

// Where nobody takes connections, each gets one more answer, which says that it is the last.
func TestDrain_WithoutAQueue(t *testing.T) {
	a := launch(t, echo, setting{})
	idle, slow, waits := a.dial(), a.dial(), a.foreign("web", "")
	idle.ask("/0", "one")
	slow.send(request("/2000", "slow"))
	a.dial().ask("/0", "all accepted")
	a.order(channel.Drain{Deadline: minute})
	a.waitDraining()
	for _, c := range []*client{idle, waits} {
		if !c.ask("/0", "two") {
			t.Error("the answer does not close its connection")
		}
		c.ended()
	}
	if !slow.answer("slow") {
		t.Error("the answer in progress does not close its connection")
	}
	slow.ended()
}

// Of requests that were sent together each is answered, before the connection is closed.
func TestDrain_Pipelined(t *testing.T) {
	a := launch(t, echo, setting{})
	before, after := a.dial(), a.dial()
	before.send(request("/300", "one") + request("/300", "two"))
	after.ask("/0", "one")
	a.dial().ask("/0", "all accepted")
	a.order(channel.Drain{Deadline: minute})
	a.waitDraining()
	after.send(request("/100", "one") + request("/100", "two"))
	for _, c := range []*client{before, after} {
		if c.answer("one") {
			t.Error("the first answer is the connection's last")
		}
		c.answer("two")
	}
	after.ended()
}

// waitDraining waits for the first report of a drain.
func (a *app) waitDraining() channel.Status {
	a.t.Helper()
	st, ok := a.hear().(channel.Status)
	if !ok {
		a.t.Fatal("no status")
	}
	return st
}

// A full stop waits a second for idle connections; the end of the channel is one.
func TestDrain_Stop(t *testing.T) {
	for name, stop := range map[string]func(*app){
		"order":              func(a *app) { a.order(channel.Drain{Deadline: minute, Stop: true}) },
		"end of the channel": func(a *app) { _ = a.master.Close() },
		"order after order": func(a *app) {
			a.order(channel.Drain{Deadline: minute})
			a.order(channel.Drain{Stop: true})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := launch(t, echo, setting{})
			idle := a.dial()
			idle.ask("/0", "one")
			slow := a.dial()
			slow.send(request("/2000", "longer than the second"))
			a.dial().ask("/0", "all accepted")
			stop(a)
			idle.ended()
			slow.answer("longer than the second")
			if status := a.exits(); status != 0 {
				t.Errorf("status %d", status)
			}
		})
	}
}

// A queue that is full, or whose reader has gone, costs nothing: what cannot leave is served, and leaves later if it can.
func TestDrain_QueueThatTakesNothing(t *testing.T) {
	t.Parallel()
	fill := func(t *testing.T, sf *handoff.Sender) (n int) {
		t.Helper()
		_, w, err := handoff.NewPair()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		rc, err := w.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		for sf.Send(rc, "fill", make([]byte, handoff.MaxPending)) == nil {
			n++
		}
		for sf.Send(rc, "fill", nil) == nil {
			n++
		}
		return n
	}
	const clients = 8
	setup := func(t *testing.T) (*app, []*client, *handoff.Receiver, *handoff.Sender) {
		t.Helper()
		a := launch(t, echo, setting{})
		var cs []*client
		for range clients {
			c := a.dial()
			c.ask("/0", "one")
			cs = append(cs, c)
		}
		rf, sf, err := handoff.NewPair()
		if err != nil {
			t.Fatal(err)
		}
		r, err := handoff.NewReceiver(rf)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		// The same open file, for the test to fill.
		s, err := handoff.NewSender(sf)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return a, cs, r, s
	}
	order := func(t *testing.T, a *app, s *handoff.Sender) {
		t.Helper()
		f, err := s.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := a.master.Send(channel.Drain{Deadline: minute, Handoff: true}, f); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("full for a while", func(t *testing.T) {
		a, cs, r, s := setup(t)
		n := fill(t, s)
		order(t, a, s)
		a.waitDraining()
		for range n {
			_ = a.take(r).Close()
		}
		for range cs {
			if c := a.take(r); c.Listener != "web" {
				t.Errorf("got one of %q", c.Listener)
			} else {
				_ = c.Close()
			}
		}
		a.exits()
	})
	t.Run("full for ever", func(t *testing.T) {
		a, cs, _, s := setup(t)
		fill(t, s)
		order(t, a, s)
		a.waitDraining()
		for _, c := range cs {
			if !c.ask("/0", "two") { // all are served: the one that waits in the full queue, too
				c.ask("/0", "three")
			}
		}
		if !strings.Contains(a.output(), "the queue has had no room") {
			t.Error("nothing was logged")
		}
	})
	t.Run("nobody reads", func(t *testing.T) {
		a, cs, r, s := setup(t)
		_ = r.Close()
		order(t, a, s)
		a.waitDraining()
		for range 3 {
			for _, c := range cs {
				c.ask("/0", "two")
			}
		}
	})
}

// The kernel's limit on descriptors in flight is that on open files, for all but the mighty. A connection that it keeps
// from leaving is served on.
func TestDrain_TooManyDescriptorsInFlight(t *testing.T) {
	t.Parallel()
	a := launch(t, echo, setting{common: true})
	var cs []*client
	for range 8 {
		c := a.dial()
		c.send(request("/500", "slow"))
		cs = append(cs, c)
	}
	a.dial().ask("/0", "all accepted")
	r := a.order(channel.Drain{Deadline: minute, Handoff: true})
	_ = a.take(r).Close()
	a.waitDraining()
	a.setNoFile(1)
	for _, c := range cs {
		c.answer("slow")
	}
	for _, c := range cs { // some may wait in the queue
		c.send(request("/0", "two"))
	}
	served := 0
	for _, c := range cs {
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := c.r.Peek(1); err == nil {
			c.answer("two")
			served++
		}
	}
	if served == 0 {
		t.Errorf("%d of %d were served on", served, len(cs))
	}
	a.setNoFile(1024)
	for range cs {
		_ = a.take(r).Close()
	}
	a.exits()
}

func (a *app) setNoFile(n uint64) {
	a.t.Helper()
	if err := unix.Prlimit(a.cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: 1024}, nil); err != nil {
		a.t.Fatal(err)
	}
}
