package gapless

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gapless/internal/handoff"
	"gapless/internal/testwait"
)

// A request that came in the same TLS record as the one before is as much in flight as any other.
func TestDrain_PipelinedRequestOverTLSIsNotCancelled(t *testing.T) {
	p := noEnv(t)
	entered, gate := make(chan error), make(chan struct{})
	addr, done := serveOn(t, p, "web", &http.Server{
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}, MinVersion: tls.VersionTLS12}, ErrorLog: quietLog(),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				entered <- nil
				select {
				case <-gate:
				case <-r.Context().Done():
					_, _ = io.WriteString(w, "cancelled")
					return
				}
			}
			_, _ = io.WriteString(w, "done")
		}),
	})
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, get+"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	await(t, entered)
	s := p.servers[0]
	p.orderDrain(order{from: time.Now(), stop: true})
	testwait.Until(t, "what is idle ends", func() bool { return s.mode.Load() == modeEnding })
	rounds := 0 // the drain looks at all connections in each of its own, which take 10 ms: often while these hundred go on
	testwait.Until(t, "all connections have been looked at", func() bool { rounds++; return rounds > 100 })
	close(gate)
	br := bufio.NewReader(c)
	for i := range 2 {
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || string(body) != "done" {
			t.Errorf("answer %d: %q, %v", i, body, err)
		}
	}
	await(t, done)
}

// What a program registers with RegisterOnShutdown is called once, as by a program that calls Shutdown once: it may close a
// channel.
func TestDrain_CallsWhatIsRegisteredOnce(t *testing.T) {
	p := noEnv(t)
	entered, gate := make(chan struct{}), make(chan struct{})
	both := protocols((*http.Protocols).SetHTTP1, (*http.Protocols).SetUnencryptedHTTP2)
	srv := &http.Server{Handler: slowly(entered, gate), Protocols: both}
	var called atomic.Int32
	srv.RegisterOnShutdown(func() { called.Add(1) })
	addr, done := serveOn(t, p, "web", srv)
	transport := &http.Transport{Protocols: protocols((*http.Protocols).SetUnencryptedHTTP2)}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
	var wg sync.WaitGroup
	wg.Go(func() {
		if got, _ := fetch(t, client, "http://"+addr+"/slow"); got != "/slow over HTTP/2.0" {
			t.Errorf("in flight: got %q", got)
		}
	})
	<-entered
	p.orderStop()
	testwait.Until(t, "it is called", func() bool { return called.Load() > 0 })
	<-time.After(time.Second) // longer than Shutdown is waited for
	close(gate)
	wg.Wait()
	await(t, done)
	if n := called.Load(); n != 1 {
		t.Errorf("called %d times", n)
	}
}

// An HTTP/2 connection that was never told to go must not hold the process for ever.
func TestDrain_EndsHTTP2ThatWasNotTold(t *testing.T) {
	s := newServer(noEnv(t), &http.Server{}, "web", false)
	begun := func(asked bool) (client net.Conn) {
		client, served := net.Pipe()
		c := &conn{Conn: served, srv: s, h2: asked}
		c.cond.L = &c.mu
		c.scan.phase, c.scan.matched = phRaw, len(preface)
		s.add(c)
		if c.kind() != kindHTTP2 {
			t.Fatal("it does not count as HTTP/2")
		}
		_ = client.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		t.Cleanup(func() { _ = client.Close(); _ = served.Close() })
		return client
	}
	untold, told := begun(false), begun(true)
	s.closeUntold()
	if _, err := untold.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("never asked: %v, want its end", err)
	}
	if _, err := told.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("asked and told: %v, want it left alone", err)
	}
}

// A program that ends its server by Shutdown, as with net/http, waits for what is in flight, and so does Serve's end not cut it.
func TestServe_ProgramShutsDownWithARequestInFlight(t *testing.T) {
	p := noEnv(t)
	entered, gate := make(chan struct{}), make(chan struct{})
	srv := &http.Server{Handler: slowly(entered, gate)}
	addr, done := serveOn(t, p, "web", srv)
	var wg sync.WaitGroup
	wg.Go(func() {
		if got, _ := fetch(t, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, "http://"+addr+"/slow"); got != "/slow over HTTP/1.1" {
			t.Errorf("got %q", got)
		}
	})
	<-entered
	wg.Go(func() {
		if err := srv.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
	select {
	case err := <-done:
		if !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("got %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Serve has not returned")
	}
	close(gate)
	wg.Wait()
}

// The same in a worker that has connections from elsewhere: those that wait are ended, as net/http ends idle ones.
func TestServe_ProgramShutsDownWithParkedConnections(t *testing.T) {
	p, _, queue, _, done := worker(t)
	clients := []net.Conn{sendConn(t, queue, ""), sendConn(t, queue, "GE")}
	p.mu.Lock()
	s := p.servers[0]
	p.mu.Unlock()
	testwait.Until(t, "they have come", func() bool { return s.count() == len(clients) })
	if err := s.srv.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("got %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Serve has not returned")
	}
	for i, c := range clients {
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("connection %d: %v, want its end", i, err)
		}
	}
}

// sendConn puts a connection into a queue and returns the client's end.
func sendConn(t *testing.T, queue *handoff.Sender, pending string) net.Conn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client := dialN(t, l.Addr().String(), 1)[0]
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	rc, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := queue.Send(rc, "web", []byte(pending)); err != nil {
		t.Fatal(err)
	}
	return client
}

// A connection that was reset on its way has no address any more, and a program's hooks do not expect that.
func TestHandoff_ConnectionThatWasReset(t *testing.T) {
	f := newFleet(t, func(g int) *http.Server {
		s := echoing(g)
		s.ConnContext = func(ctx context.Context, nc net.Conn) context.Context {
			_ = nc.RemoteAddr().String()
			return ctx
		}
		return s
	})
	sender := f.cur.sender(t)
	defer sender.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	rc, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = client.(*net.TCPConn).SetLinger(0)
	_ = client.Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("got %v, want its reset", err)
	}
	if err := sender.Send(rc, "web", []byte(get)); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	a := newAsker(dialN(t, f.addr(), 1)[0])
	a.send(t, get)
	a.answer(t)
	testwait.Until(t, "the other one is forgotten", func() bool { return f.cur.connections() == 1 })
}

// That a program closes a connection which is about to move is no reason to give up the queue.
func TestHandoff_ConnectionThatTheProgramCloses(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialN(t, l.Addr().String(), 1)
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(noEnv(t), &http.Server{}, "web", false)
	recv, send, err := handoff.NewPair()
	if err != nil {
		t.Fatal(err)
	}
	defer recv.Close()
	out, err := handoff.NewSender(send)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c, err := newConn(s, nc, false)
	if err != nil {
		t.Fatal(err)
	}
	s.add(c)
	s.out.Store(out)
	s.mode.Store(modeHanding)
	_ = c.Close()
	if _, err := c.Read(make([]byte, 10)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
	if s.broken.Load() {
		t.Error("the queue is taken for broken")
	}
}

func TestServer_Given(t *testing.T) {
	for _, tt := range []struct {
		err                 error
		given, full, broken bool
	}{
		{nil, true, false, false},
		{handoff.ErrFull, false, true, false},
		{os.NewSyscallError("sendmsg", syscall.ETOOMANYREFS), false, true, false},
		{os.NewSyscallError("sendmsg", syscall.ENOBUFS), false, true, false},
		{os.NewSyscallError("sendmsg", syscall.ENOMEM), false, true, false},
		{os.NewSyscallError("sendmsg", syscall.EPIPE), false, false, true},
	} {
		t.Run(fmt.Sprint(tt.err), func(t *testing.T) {
			s := newServer(noEnv(t), &http.Server{}, "web", false)
			if got := s.given(tt.err); got != tt.given || s.full.Load() != tt.full || s.broken.Load() != tt.broken {
				t.Errorf("given %v, full %v, broken %v", got, s.full.Load(), s.broken.Load())
			}
		})
	}
}
