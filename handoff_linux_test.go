package gapless

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gapless/internal/handoff"
	"gapless/internal/seqpacket"
	"gapless/internal/testwait"
)

// fleet plays the master: a socket and, per generation, a worker (a process
// within this one) and its queue.
type fleet struct {
	t    testing.TB
	l    listener
	make func(generation int) *http.Server
	gen  int
	cur  *member
	all  []*member
}

// listener is a TCP or unix listener.
type listener interface {
	net.Listener
	syscall.Conn
}

type member struct {
	p          *process
	recv, send *os.File
	done       chan error
}

func newFleet(t testing.TB, mk func(int) *http.Server) *fleet {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return newFleetOn(t, l, mk)
}

// newFleetOn takes the listener over.
func newFleetOn(t testing.TB, l listener, mk func(int) *http.Server) *fleet {
	t.Helper()
	f := &fleet{t: t, l: l, make: mk}
	f.cur = f.start()
	t.Cleanup(func() {
		f.cur.p.orderStop()
		await(t, f.cur.done)
		for _, m := range f.all {
			m.p.end()
			_ = m.recv.Close()
			_ = m.send.Close()
		}
		_ = l.Close()
	})
	return f
}

func (f *fleet) addr() string { return f.l.Addr().String() }

// start starts a worker of the next generation and waits until it is ready.
func (f *fleet) start() *member {
	f.t.Helper()
	f.gen++
	m := &member{done: make(chan error, 1)}
	var err error
	if m.recv, m.send, err = handoff.NewPair(); err != nil {
		f.t.Fatal(err)
	}
	m.p = newProcess(1, func(string) (string, bool) { return "", false }, func(string) error { return nil })
	m.p.env.generation = f.gen
	recv, err := seqpacket.Dup(m.recv)
	if err != nil {
		f.t.Fatal(err)
	}
	if m.p.queue, err = handoff.NewReceiver(recv); err != nil {
		f.t.Fatal(err)
	}
	rc, err := f.l.SyscallConn()
	if err != nil {
		f.t.Fatal(err)
	}
	file, err := seqpacket.DupRaw(rc, "l")
	if err != nil {
		f.t.Fatal(err)
	}
	l, err := net.FileListener(file)
	_ = file.Close()
	if err != nil {
		f.t.Fatal(err)
	}
	m.p.listeners = []*inherited{{Listener: l, name: "web"}}
	srv := f.make(f.gen)
	srv.Addr = "web"
	go func() { m.done <- m.p.serve(srv) }()
	testwait.Until(f.t, "the worker is ready", func() bool {
		m.p.mu.Lock()
		defer m.p.mu.Unlock()
		return m.p.listeners[0].serving
	})
	f.all = append(f.all, m)
	return m
}

// sender is what a draining worker gets: the end of the queue of m.
func (m *member) sender(t testing.TB) *handoff.Sender {
	t.Helper()
	f, err := seqpacket.Dup(m.send)
	if err != nil {
		t.Fatal(err)
	}
	s, err := handoff.NewSender(f)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// upgrade replaces the worker and waits until the old one is done.
func (f *fleet) upgrade() {
	f.t.Helper()
	old := f.cur
	f.cur = f.start()
	old.p.orderDrain(order{from: time.Now(), queue: f.cur.sender(f.t)})
	await(f.t, old.done)
	// What the old worker did not take from its queue, the master moves on.
	r, err := seqpacket.Dup(old.recv)
	if err != nil {
		f.t.Fatal(err)
	}
	recv, err := handoff.NewReceiver(r)
	if err != nil {
		f.t.Fatal(err)
	}
	defer recv.Close()
	send := f.cur.sender(f.t)
	defer send.Close()
	for {
		_, err := handoff.Move(send, recv)
		if err == nil {
			return
		}
		if !errors.Is(err, handoff.ErrFull) {
			f.t.Fatal(err)
		}
	}
}

// echoing answers with the body, and says which generation it is.
func echoing(generation int) *http.Server {
	return &http.Server{
		ErrorLog: quietLog(),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			w.Header().Set("X-Generation", fmt.Sprint(generation))
			_, _ = w.Write(body)
		}),
	}
}

// talk sends requests of all kinds on one connection and checks each answer,
// until stop is closed. It never connects again and never repeats a request.
func talk(c net.Conn, seed uint64, stop <-chan struct{}, pace time.Duration, answered *atomic.Int64) error {
	rng := rand.New(rand.NewPCG(seed, 1))
	br := bufio.NewReader(c)
	for n := 0; ; n++ {
		var text bytes.Buffer
		var want []string
		for range 1 + rng.IntN(4)*rng.IntN(2) {
			body := fmt.Sprintf("%d-%d-%d-%s", seed, n, len(want), strings.Repeat("x", rng.IntN(300)))
			want = append(want, body)
			if rng.IntN(2) == 0 {
				fmt.Fprintf(&text, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
				continue
			}
			half := len(body) / 2
			fmt.Fprintf(&text, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x;a=b\r\n%s\r\n%x\r\n%s\r\n0\r\nA: b\r\n\r\n",
				half, body[:half], len(body)-half, body[half:])
		}
		for b := text.Bytes(); len(b) > 0; {
			k := len(b)
			if rng.IntN(3) == 0 {
				k = 1 + rng.IntN(len(b))
			}
			if _, err := c.Write(b[:k]); err != nil {
				return fmt.Errorf("request %d: %w", n, err)
			}
			if b = b[k:]; len(b) > 0 {
				<-time.After(time.Duration(rng.IntN(2000)) * time.Microsecond)
			}
		}
		for i, body := range want {
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				return fmt.Errorf("answer %d.%d: %w", n, i, err)
			}
			got, err := io.ReadAll(resp.Body)
			if err != nil || string(got) != body {
				return fmt.Errorf("answer %d.%d: got %q, want %q (%v)", n, i, got, body, err) //nolint:errorlint // err may be nil
			}
			if resp.Close {
				return fmt.Errorf("answer %d.%d says that the connection ends", n, i)
			}
			answered.Add(1)
		}
		select {
		case <-stop:
			return nil
		case <-time.After(pace):
		}
	}
}

func TestHandoff_NothingDroppedNothingClosed(t *testing.T) {
	f := newFleet(t, echoing)
	stop := make(chan struct{})
	var answered atomic.Int64
	var wg sync.WaitGroup
	for i, c := range dialN(t, f.addr(), 60) {
		wg.Go(func() {
			if err := talk(c, uint64(i), stop, 5*time.Millisecond, &answered); err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
		})
	}
	for range 20 {
		before := answered.Load()
		f.upgrade()
		testwait.Until(t, "traffic goes on", func() bool { return answered.Load() > before+100 || t.Failed() })
	}
	close(stop)
	wg.Wait()
	t.Logf("%d answers over %d generations", answered.Load(), f.gen)
}

func TestHandoff_IdleConnections(t *testing.T) {
	f := newFleet(t, echoing)
	cs := dialN(t, f.addr(), 300)
	ask := func(c net.Conn) string {
		t.Helper()
		if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if got, err := io.ReadAll(resp.Body); err != nil || string(got) != "hi" || resp.Close {
			t.Fatalf("got %q, %v, close %v", got, err, resp.Close)
		}
		return resp.Header.Get("X-Generation")
	}
	for i, c := range cs {
		switch i % 3 {
		case 0: // silent since it was opened
		case 1:
			ask(c)
		case 2: // with three bytes of the next request sent
			ask(c)
			if _, err := io.WriteString(c, "POS"); err != nil {
				t.Fatal(err)
			}
		}
	}
	f.upgrade()
	f.upgrade()
	for i, c := range cs {
		got := ""
		if i%3 == 2 {
			if _, err := io.WriteString(c, "T / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
			got = resp.Header.Get("X-Generation")
		} else {
			got = ask(c)
		}
		if got != "3" {
			t.Errorf("connection %d is answered by generation %q", i, got)
		}
	}
}
