package gapless

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gapless/internal/handoff"
)

// The modes of a server, in the order in which a drain goes through them; it
// may leave some out.
const (
	modeServing int32 = iota
	modeHanding       // connections move to another process between two requests; those that cannot are closed as in modeClosing
	modeClosing       // every response says Connection: close; idle connections are waited for
	modeEnding        // as modeClosing, and connections that are idle end
)

// server is one call of Serve: an http.Server and the connections it serves.
type server struct {
	p    *process
	name string // of the listener; connections move only between servers of one name
	srv  *http.Server
	next http.Handler // the program's
	star bool         // net/http answers OPTIONS *
	tls  bool

	mode   atomic.Int32
	handed atomic.Int64
	out    atomic.Pointer[handoff.Sender]
	full   atomic.Bool // sending failed and may succeed later
	broken atomic.Bool // sending failed and will not succeed

	moved int64 // see look; guarded by the process's mutex

	mu      sync.Mutex
	conns   map[*conn]struct{}
	pages   sync.Pool // of *page
	watches lazyWatches
	changed chan struct{} // receives when a connection has ended; buffered

	idle   idleSet       // connections from other processes that have not become active
	parked chan net.Conn // connections from other processes that have become active
	parks  sync.WaitGroup
	unpark chan struct{} // closed when nothing is parked and nothing will be
	dead   chan struct{} // closed when net/http takes no parked connections any more
}

type connKey struct{}

func newServer(p *process, srv *http.Server, name string, secure bool) *server {
	s := &server{
		p: p, name: name, srv: srv, next: srv.Handler, star: !srv.DisableGeneralOptionsHandler, tls: secure,
		conns: make(map[*conn]struct{}), changed: make(chan struct{}, 1),
		pages:  sync.Pool{New: func() any { return new(page) }},
		parked: make(chan net.Conn), unpark: make(chan struct{}), dead: make(chan struct{}),
	}
	s.idle.s = s
	if s.next == nil {
		s.next = http.DefaultServeMux
	}
	// OPTIONS * would bypass the handler that tells the scanner of the body.
	srv.Handler, srv.DisableGeneralOptionsHandler = s, true

	userState, userContext, userBase := srv.ConnState, srv.ConnContext, srv.BaseContext
	srv.ConnState = func(nc net.Conn, st http.ConnState) {
		switch st {
		case http.StateIdle:
			if c := connOf(nc); c != nil {
				c.finished()
			}
		case http.StateHijacked:
			if c := connOf(nc); c != nil {
				c.pass()
			}
		}
		if userState != nil {
			userState(nc, st)
		}
	}
	srv.ConnContext = func(ctx context.Context, nc net.Conn) context.Context {
		if c := connOf(nc); c != nil {
			ctx = context.WithValue(ctx, connKey{}, c)
		}
		if userContext != nil {
			ctx = userContext(ctx, nc)
		}
		return ctx
	}
	if userBase != nil {
		srv.BaseContext = func(l net.Listener) context.Context {
			if w, ok := l.(interface{ beneath() net.Listener }); ok {
				l = w.beneath()
			}
			return userBase(l)
		}
	}
	return s
}

func connOf(nc net.Conn) *conn {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	if w, ok := nc.(wrapped); ok {
		return w.base()
	}
	return nil
}

// ServeHTTP is the outermost handler.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, _ := r.Context().Value(connKey{}).(*conn)
	moves := false
	if c != nil {
		// Counted on the connection: a counter of the server would be fought over by all cores.
		c.inFlight.Add(1)
		defer c.inFlight.Add(-1)
		if r.ProtoMajor == 1 {
			moves = c.began(r.ContentLength)
		} else {
			c.isHTTP2()
		}
	}
	if m := s.mode.Load(); m != modeServing && (m != modeHanding || !moves || s.broken.Load()) {
		if r.Header["Upgrade"] != nil && r.ProtoMajor == 1 {
			u := &upgradeWriter{ResponseWriter: w}
			s.serve(u, r)
			u.begin(http.StatusOK) // the program has written nothing
			return
		}
		w.Header().Set("Connection", "close") // on HTTP/2 net/http makes a GOAWAY of it
	}
	s.serve(w, r)
}

// serve has the program answer a request.
func (s *server) serve(w http.ResponseWriter, r *http.Request) {
	if s.star && r.Method == http.MethodOptions && r.RequestURI == "*" {
		optionsStar(w, r)
		return
	}
	s.next.ServeHTTP(w, r)
}

// optionsStar answers as net/http does where the program does not.
func optionsStar(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", "0")
	if r.ContentLength != 0 {
		// A client need not see that a larger body is not wanted.
		_, _ = io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, 4<<10))
	}
}

// add makes a connection one of the server's.
func (s *server) add(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c] = struct{}{}
}

func (s *server) forget(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// requests is how many requests are with the program.
func (s *server) requests() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		n += int(c.inFlight.Load())
	}
	return n
}

func (s *server) count() int {
	idle := s.idle.len() // first, as connections go that way
	s.mu.Lock()
	defer s.mu.Unlock()
	return idle + len(s.conns)
}

func (s *server) snapshot() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		all = append(all, c)
	}
	return all
}

// adopt takes a connection that came through the queue: it is the server's at
// once, and net/http's when its next request begins. Where the process is short
// of descriptors it reports false, and the connection is still the caller's.
func (s *server) adopt(h *handoff.Conn) bool {
	nc, err := h.NetConn()
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM) {
		return false
	}
	if err != nil {
		_ = h.Close()
		return true
	}
	if nc.RemoteAddr() == nil {
		// It was reset on the way. net/http and the program's hooks rely on an address, as an accepted connection always has
		// one, and an answer would reach nobody.
		_ = nc.Close()
		return true
	}
	c, err := newConn(s, nc, s.tls)
	if err != nil {
		_ = nc.Close()
		return true
	}
	c.buf, c.parked = h.Pending, true
	s.add(c)
	s.parks.Go(func() {
		if closed(s.dead) || !c.park(s.idleTimeout()) {
			_ = c.Close()
			return
		}
		select {
		case s.parked <- c.asNetConn():
		case <-s.dead:
			_ = c.Close()
		}
	})
	return true
}

// endParked ends the connections that net/http has not got.
func (s *server) endParked() {
	for _, c := range s.snapshot() {
		c.mu.Lock()
		parked := c.parked
		c.mu.Unlock()
		if parked {
			_ = c.Close()
		}
	}
}

// idleTimeout is as net/http's.
func (s *server) idleTimeout() time.Duration {
	if d := s.srv.IdleTimeout; d != 0 {
		return d
	}
	return s.srv.ReadTimeout
}

// handOff gives c away. It is called by c between two requests.
func (s *server) handOff(c *conn) bool {
	return s.given(s.out.Load().Send(c.rc, s.name, c.buf))
}

// pass gives away a connection that came from elsewhere and has stayed idle.
func (s *server) pass(h *handoff.Conn) bool { return s.given(s.out.Load().Pass(h)) }

// given takes note of how giving a connection away went.
func (s *server) given(err error) bool {
	switch {
	case err == nil:
		s.handed.Add(1)
		return true
	case errors.Is(err, handoff.ErrFull), errors.Is(err, syscall.ETOOMANYREFS), errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
		s.full.Store(true)
	default:
		s.broken.Store(true)
	}
	return false
}

// run serves until the process drains, and then drains.
func (s *server) run(ls []*inherited) error {
	var accepting, loops sync.WaitGroup
	failed := make(chan error, len(ls)+1)
	start := func(l net.Listener, loop *sync.WaitGroup) {
		loop.Go(func() {
			if s.tls {
				failed <- s.srv.ServeTLS(l, "", "")
			} else {
				failed <- s.srv.Serve(l)
			}
		})
	}
	for _, l := range ls {
		start(&acceptor{Listener: l.Listener, s: s, started: sync.OnceFunc(func() { s.p.serving(l) })}, &accepting)
	}
	takes := !s.tls && s.p.queue != nil
	if takes {
		start(parkedListener{s, ls[0].Listener}, &loops)
	}

	select {
	case err := <-failed:
		if !s.p.isDraining() {
			// Somebody closed the server or its listener. Connections that are
			// parked have no one to serve them then.
			s.p.leave(s)
			close(s.dead)
			if !errors.Is(err, http.ErrServerClosed) {
				// The program has not ended it, and so waits for nothing. If it
				// has, by Shutdown, what is in flight is answered.
				_ = s.srv.Close()
			}
			s.endParked()
			s.idle.close()
			s.parks.Wait()
			close(s.unpark)
			accepting.Wait()
			loops.Wait()
			return fmt.Errorf("serve %s: %w", ls[0].Addr(), err)
		}
	case <-s.p.draining:
	}
	if o := s.p.order; o.queue != nil {
		s.out.Store(o.queue)
		s.mode.Store(modeHanding)
	} else {
		s.mode.Store(modeClosing)
	}
	s.stopAccepting(ls, s.p.order.stop)
	accepting.Wait()
	s.drain(s.p.order, loops.Wait)
	return nil
}
