package adapter

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"gapless/internal/channel"
	"gapless/internal/handoff"
	"gapless/internal/testwait"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"
)

// pairs are the event loops and parsers of uvicorn.
var pairs = []struct{ loop, http string }{
	{"asyncio", "h11"}, {"asyncio", "httptools"}, {"uvloop", "h11"}, {"uvloop", "httptools"},
}

// with runs a test with each of them; options are uvicorn's.
func with(t *testing.T, test func(t *testing.T, w *worker, http string), options ...string) {
	for _, p := range pairs {
		t.Run(p.loop+" "+p.http, func(t *testing.T) {
			t.Parallel()
			w := start(t, setup{command: append([]string{"{uvicorn}", "main:app", "--fd", "3", "--loop", p.loop, "--http", p.http}, options...)})
			if a := w.ready(); !strings.HasSuffix(a.Name, "("+p.http+", "+p.loop+")") {
				t.Errorf("it says it is %q", a.Name)
			}
			test(t, w, p.http)
		})
	}
}

// What comes through the queue is served, from its first byte on.
func TestUvicorn_TakesConnections(t *testing.T) {
	with(t, func(t *testing.T, w *worker, _ string) {
		whole := post("/", "whole")
		for _, cut := range []int{0, 1, 20, len(whole) - 2, len(whole)} {
			c := put(t, w, "web", whole[:cut])
			c.send(whole[cut:])
			c.answered("whole")
			c.send(post("/", "and on"))
			c.answered("and on")
		}
		c := put(t, w, "web", "\r\n\r\n"+whole)
		c.answered("whole")
		c = put(t, w, "admin", whole)
		if n, err := io.Copy(io.Discard, c); n > 0 || err == nil && n != 0 {
			t.Errorf("another listener's connection is served: %d bytes, %v", n, err)
		}
		// What is no connection is passed over.
		f, err := w.queue.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, junk := range []string{"x", "\x02\x00\x00\x00\x00\x00\x00\x00", "\x01\x03\x00\x00\x00\x00\x00\x01web", "\x01\x01\x00\x00\x00\x00\x00\x00\xff"} {
			for _, rights := range [][]byte{nil, unix.UnixRights(int(os.Stdin.Fd()))} {
				if err := unix.Sendmsg(int(f.Fd()), []byte(junk), rights, nil, 0); err != nil {
					t.Fatal(err)
				}
			}
		}
		// Many at once: none may be forgotten.
		var all []*conn
		for i := range 100 {
			all = append(all, put(t, w, "web", post("/", fmt.Sprint(i))))
		}
		for i, c := range all {
			c.answered(fmt.Sprint(i))
		}
	})
}

// What is told to drain gives away what is idle at once, and what is busy when it is answered.
func TestUvicorn_GivesConnections(t *testing.T) {
	with(t, func(t *testing.T, w *worker, http string) {
		idle, fresh, busy, half, early := dial(t, w.addr), dial(t, w.addr), dial(t, w.addr), dial(t, w.addr), dial(t, w.addr)
		idle.send(post("/", "a"))
		idle.answered("a")
		early.send("POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbo")
		early.answered("ok") // before its body was there
		early.send("dy")
		half.send(post("/", "b"))
		half.answered("b")
		busy.send(post("/wait", "c"))
		second := post("/", "half")
		half.send(second[:10])
		other := dial(t, w.addr) // its answer says that all before it has been read
		other.send(post("/", "d"))
		other.answered("d")

		r := w.drain(channel.Drain{Deadline: time.Minute, Handoff: true})
		expect := map[string]int{"": 4}
		if http == "h11" {
			expect[second[:10]] = 1 // what is not a whole head is not its business yet
		}
		var moved []*handoff.Conn
		n := 0
		for _, times := range expect {
			n += times
		}
		for range n {
			c := take(t, r)
			if expect[string(c.Pending)] == 0 {
				t.Errorf("pending %q", c.Pending)
			}
			expect[string(c.Pending)]--
			moved = append(moved, c)
		}
		none(t, r)
		s := next(w, func(s channel.Status) bool { return s.Handed == n })
		if want := 1 + 6 - 1 - n; s.InFlight != 1 || s.Connections != want {
			t.Errorf("got %+v, want 1 in flight and %d connections", s, want)
		}
		// All of them are alive.
		for _, c := range []*conn{idle, fresh, early, other} {
			c.send(post("/", "e"))
		}
		half.send(second[10:])
		if http == "httptools" {
			half.answered("half") // it had read the head's beginning, and so answers, and then lets go
			moved = append(moved, take(t, r))
			half.send(post("/", "e"))
		}
		for _, c := range moved {
			go servedBy(t, c)
		}
		for _, c := range []*conn{idle, fresh, early, other} {
			c.answered("new e")
		}
		if http == "httptools" {
			half.answered("new e")
		} else {
			half.answered("new half")
		}
		w.lives()
		if s := next(w, func(s channel.Status) bool { return s.Handed == len(moved) }); s.InFlight != 1 {
			t.Errorf("got %+v", s)
		}
		// The last one is answered by who began, and moves; then all is over.
		w.release("/wait")
		busy.answered("c")
		last := take(t, r)
		busy.send(post("/", "f"))
		servedBy(t, last)
		busy.answered("new f")
		if st := w.ends(); !strings.Contains(w.printed(), "lifespan is over") {
			t.Errorf("the lifespan was not ended: %v", st)
		}
	})
}

// While the queue is full the connections are served where they are.
func TestUvicorn_FullQueue(t *testing.T) {
	with(t, func(t *testing.T, w *worker, _ string) {
		const clients = 8
		var all []*conn
		for i := range clients {
			c := dial(t, w.addr)
			c.send(post("/", fmt.Sprint(i)))
			c.answered(fmt.Sprint(i))
			all = append(all, c)
		}
		recv, send, err := handoff.NewPair()
		if err != nil {
			t.Fatal(err)
		}
		r, err := handoff.NewReceiver(recv)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		defer send.Close()
		fd := int(send.Fd())
		if err := unix.SetNonblock(fd, true); err != nil { // Fd has cleared it
			t.Fatal(err)
		}
		filler := make([]byte, 32<<10)
		n := 0
		for ; err == nil; n++ {
			err = unix.Send(fd, filler, 0)
		}
		if !errors.Is(err, unix.EAGAIN) {
			t.Fatal(err)
		}
		if err := w.ch.Send(channel.Drain{Deadline: time.Minute, Handoff: true}, send); err != nil {
			t.Fatal(err)
		}
		for round := range 3 {
			for _, c := range all {
				c.send(post("/", "still here"))
				if c.answered("still here") {
					t.Errorf("round %d: the connection ends", round)
				}
			}
		}
		if s := next[channel.Status](w, nil); s.Handed != 0 || s.Connections != clients {
			t.Errorf("got %+v", s)
		}
		for range n - 1 {
			if _, err := r.TryReceive(); !errors.Is(err, handoff.ErrPacket) {
				t.Fatalf("got %v, want the filler", err)
			}
		}
		for range clients {
			go servedBy(t, take(t, r))
		}
		for _, c := range all {
			c.send(post("/", "x"))
			c.answered("new x")
		}
		w.ends()
	})
}

// Whoever takes connections dies: the others end in order, each after one more answer that says so.
func TestUvicorn_ReceiverDies(t *testing.T) {
	with(t, func(t *testing.T, w *worker, _ string) {
		idle, busy := dial(t, w.addr), dial(t, w.addr)
		idle.send(post("/", "a"))
		idle.answered("a")
		busy.send(post("/wait", "b"))
		r := w.drain(channel.Drain{Deadline: time.Minute, Handoff: true})
		take(t, r)
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		w.release("/wait")
		busy.answered("b")
		last := false // its next request may come before the attempt to send it away
		for i := 0; i < 10 && !last; i++ {
			busy.send(post("/", "c"))
			last = busy.answered("c")
		}
		if !last {
			t.Error("no response says that it is the last")
		}
		busy.ended()
		w.ends()
	})
}

// Where nobody takes over, each idle connection is answered once more, with the word that this was the last.
func TestUvicorn_NobodyTakesOver(t *testing.T) {
	with(t, func(t *testing.T, w *worker, _ string) {
		idle, busy, fresh := dial(t, w.addr), dial(t, w.addr), dial(t, w.addr)
		idle.send(post("/", "a"))
		idle.answered("a")
		busy.send(post("/wait", "b"))
		fresh.send(post("/", "c"))
		fresh.answered("c")
		given := put(t, w, "web", "") // is in the queue by now, or taken from it
		w.drain(channel.Drain{Deadline: time.Minute})
		next[channel.Status](w, nil)
		w.release("/wait")
		if !busy.answered("b") {
			t.Error("what was being answered is to be the last")
		}
		busy.ended()
		for _, c := range []*conn{idle, fresh, given} {
			c.send(post("/", "d"))
			if !c.answered("d") {
				t.Error("the response does not say that it is the last")
			}
			c.ended()
		}
		w.ends()
	})
}

// When everything stops, who is idle has a second.
func TestUvicorn_FullStop(t *testing.T) {
	with(t, func(t *testing.T, w *worker, _ string) {
		quiet, talks, busy := dial(t, w.addr), dial(t, w.addr), dial(t, w.addr)
		for _, c := range []*conn{quiet, talks} {
			c.send(post("/", "a"))
			c.answered("a")
		}
		busy.send(post("/wait", "b"))
		ws := webSocket(t, w)
		w.drain(channel.Drain{Deadline: time.Minute, Stop: true})
		talks.send(post("/", "c"))
		talks.answered("c")
		talks.ended()
		began := time.Now()
		quiet.ended()
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("it had %v", took)
		}
		if _, _, err := ws.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusServiceRestart {
			t.Errorf("the WebSocket ended with %v", err)
		}
		w.lives()
		w.release("/wait")
		busy.answered("b")
		w.ends()
	})
}

// The end of both master and parent is a full stop.
func TestUvicorn_ChannelEnds(t *testing.T) {
	w := start(t, setup{})
	w.ready()
	c := dial(t, w.addr)
	c.send(post("/", "a"))
	c.answered("a")
	if err := w.ch.Close(); err != nil {
		t.Fatal(err)
	}
	c.ended()
	w.ends()
}

// More descriptors on their way than the user may have: the connections stay, are served, and leave later.
func TestUvicorn_TooManyReferences(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this needs root: it runs uvicorn as another user, with limits that do not bind root")
	}
	const clients, limit = 60, 20
	w := start(t, setup{uid: 65534})
	w.ready()
	narrow := dial(t, w.addr)
	narrow.send(post("/wait-limit", fmt.Sprint(limit)))
	var all []*conn
	for range clients {
		c := dial(t, w.addr)
		c.send(post("/wait", "a"))
		all = append(all, c)
	}
	testwait.Until(t, "all are being answered", func() bool { return strings.Count(w.printed(), "waits\n") == clients+1 })
	r := w.drain(channel.Drain{Deadline: time.Minute, Handoff: true})
	w.release("/wait-limit")
	narrow.answered(fmt.Sprint(limit))
	w.release("/wait")
	for _, c := range all {
		c.answered("a")
	}
	next(w, func(s channel.Status) bool {
		return s.Handed >= limit && s.Handed <= limit+2 && s.Handed+s.Connections == clients+1
	})
	// What could not leave is served. Which ones these are, only the answers tell.
	answers := make(chan bool)
	for _, c := range all {
		c.send(post("/", "still here"))
		go func() {
			_, err := c.r.Peek(1)
			answers <- err == nil
		}()
	}
	for range clients - limit - 2 {
		if !<-answers {
			t.Fatal("a connection that could not leave was closed")
		}
	}
	for range clients + 1 {
		c := take(t, r)
		_ = c.Close()
	}
	for range limit + 2 {
		<-answers
	}
	w.ends()
}
