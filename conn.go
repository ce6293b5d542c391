package gapless

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// conn is a connection that net/http serves. It owns what was read ahead, so
// that at every moment it is known whether a byte of the next request was
// given to net/http; between two requests the connection can move to another
// process, and the bytes that were read ahead move with it.
//
// The move happens inside Read, on the goroutine that would otherwise wait for
// the next request, so nobody else can touch the connection meanwhile.
type conn struct {
	net.Conn
	rc  syscall.RawConn
	srv *server
	tls bool // what passes here is ciphertext: only idleness is known, no boundary

	mu      sync.Mutex
	cond    sync.Cond // on mu: the deadline, the scanner or closed changed
	scan    scanner
	buf     []byte      // read ahead and not yet given to net/http
	rd      time.Time   // the read deadline that net/http wants
	free    atomic.Bool // rd is zero and the connection open; written with mu held
	set     time.Time   // the one in force
	one     [4]byte     // for reads that must take little, without an allocation
	small   [4]byte     // holds buf while it is that short
	page    *page       // holds buf when it is longer
	parked  bool        // net/http has not got it yet
	first   bool        // net/http serves its first request on it
	idle    bool        // TLS: between two requests, with nothing read of the next
	h2      bool        // HTTP/2: only GOAWAY can end it
	taken   bool        // hijacked
	busy    bool        // a request is with the program
	reading bool        // a Read is blocked in the kernel
	kicked  bool        // the read deadline in force is a kick
	gone    bool        // handed off or ended between two requests
	closed  bool
	lazy    lazyWatch

	inFlight atomic.Int32 // requests that are with the program

	// Of look and oldest; guarded by the process's mutex.
	seen   int64
	looked bool
	since  time.Time // when the oldest request that is with the program came; zero: there is none
}

// page is as long as what net/http reads at a time, so it holds what is left of
// that behind the end of a request's part.
type page [4 << 10]byte

// tcpConn adds what net/http uses to send files without copying, and what
// unix connections have not.
type tcpConn struct{ *conn }

func (c tcpConn) ReadFrom(r io.Reader) (int64, error) {
	if rf, ok := c.Conn.(io.ReaderFrom); ok {
		return rf.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{c.Conn}, r)
}

// wrapped is implemented by *conn and tcpConn.
type wrapped interface{ base() *conn }

func (c *conn) base() *conn { return c }

// errGone makes net/http close its side without an answer and without a log
// line: it takes read errors of this type for a client that went away.
var errGone error = &net.OpError{Op: "read", Net: "tcp", Err: errors.New("the connection was handed off")}

// errTimeout is what a read returns when its deadline passes while it does not
// wait for the kernel.
//
// It is a new one each time, as net's is, and not only for its looks: net/http
// starts a goroutine for each request's watch, and this is all that it
// allocates. A goroutine that allocates while the garbage is collected helps
// with that. Without the help of these the marking took twice as long, the
// collector began earlier and 12 % more often, and gave memory back that it
// needed again at once: 3 to 5 % fewer requests.
func errTimeout() error {
	return &net.OpError{Op: "read", Net: "tcp", Err: os.ErrDeadlineExceeded}
}

func newConn(srv *server, nc net.Conn, tls bool) (*conn, error) {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil, errors.New("gapless: the connection has no descriptor")
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	if _, ok := nc.(*net.TCPConn); !ok {
		nc = &counted{Conn: nc}
	}
	c := &conn{Conn: nc, rc: rc, srv: srv, tls: tls, first: true, idle: true}
	c.cond.L = &c.mu
	c.free.Store(true)
	return c, nil
}

// asNetConn is c as net/http should see it.
func (c *conn) asNetConn() net.Conn {
	if _, ok := c.Conn.(*net.TCPConn); ok {
		return tcpConn{c}
	}
	return c
}

// NetConn is the connection beneath, for a program that hijacked it and needs
// its very type. What was read ahead is not there but here.
func (c *conn) NetConn() net.Conn {
	if n, ok := c.Conn.(*counted); ok {
		return n.Conn
	}
	return c.Conn
}

// CloseWrite lets net/http end its side and still read, as it does after
// requests that it refused.
func (c *conn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SyscallConn gives access to the descriptor, as net's connections do.
func (c *conn) SyscallConn() (syscall.RawConn, error) { return c.rc, nil }

// Close closes this process's copy of the connection.
func (c *conn) Close() error {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	c.free.Store(false)
	c.cond.Broadcast()
	c.mu.Unlock()
	err := c.Conn.Close()
	if !closed {
		c.srv.forget(c)
	}
	return err
}

// Read is as in net.Conn, except that it never gives bytes of two requests.
func (c *conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if c.gone {
			return 0, errGone
		}
		var n int
		var err error
		switch {
		case c.tls:
			return c.readTLS(p)
		case c.scan.phase == phAfter && len(p) > 1:
			// Not the watch for the client's end, which reads a single byte:
			// net/http wants the body of a request that it refused without a
			// handler. It closes the connection after that.
			c.scan.phase = phRaw
			continue
		case c.scan.phase == phAfter:
			err = c.watch()
		case c.atBoundary() && c.leave():
			return 0, errGone
		case len(c.buf) > 0:
			n, err = c.readBuffered(p)
		default:
			n, err = c.readKernel(p)
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// atBoundary says whether the connection stands between two requests. What
// was read ahead may be the beginning of the next.
func (c *conn) atBoundary() bool { return !c.tls && c.scan.empty() }

// needs is how many bytes must be there before the first is given to
// net/http. Behind a request it waits for four before it looks at any, so
// holding back fewer changes nothing, and the connection can still move.
func (c *conn) needs() int {
	if c.first || !c.scan.empty() {
		return 1
	}
	return 4
}

func (c *conn) readBuffered(p []byte) (int, error) {
	if len(c.buf) < c.needs() {
		return c.readRest(p)
	}
	n := copy(p, c.buf[:c.scan.feed(c.buf[:min(len(p), len(c.buf))])])
	if c.buf = c.buf[n:]; len(c.buf) == 0 && c.page != nil {
		c.srv.pages.Put(c.page)
		c.page = nil
	}
	return n, nil
}

// readRest reads behind the few bytes in buf, too few to be given: mostly the one that the watch has found. One read
// takes them and all that is there of the request.
func (c *conn) readRest(p []byte) (int, error) {
	if len(p) <= len(c.buf) {
		return 0, c.readAhead(c.needs() - len(c.buf))
	}
	had := copy(p, c.buf)
	n, err := c.wait(p[had:])
	if n == 0 {
		return 0, err
	}
	p = p[:had+n]
	c.buf = c.buf[:0]
	if len(p) < c.needs() || c.srv.mode.Load() == modeHanding {
		c.keep(p)
		return 0, nil
	}
	k := c.scan.feed(p)
	if k < len(p) {
		c.keep(p[k:])
	}
	return k, nil
}

// readKernel reads straight into p, and keeps what net/http must not have yet.
func (c *conn) readKernel(p []byte) (int, error) {
	switch c.scan.phase {
	case phBody:
		p = p[:min(int64(len(p)), c.scan.left)]
	case phRaw:
		c.enforce()
		c.mu.Unlock()
		defer c.mu.Lock()
		return c.Conn.Read(p)
	case phHead, phAfter, phChunk:
	}
	n, err := c.wait(p)
	if n == 0 {
		return 0, err
	}
	if c.atBoundary() && (n < c.needs() || c.srv.mode.Load() == modeHanding) {
		c.keep(p[:n])
		return 0, nil
	}
	k := c.scan.feed(p[:n])
	if k < n {
		c.keep(p[k:n])
	}
	return k, nil
}

// readAhead waits for up to n bytes, at most four, behind those in buf.
func (c *conn) readAhead(n int) error {
	n, err := c.wait(c.one[:n])
	c.keep(c.one[:n])
	if n > 0 {
		return nil
	}
	return err
}

// keep puts what was read ahead behind what is there already.
func (c *conn) keep(b []byte) {
	if len(c.buf) == 0 {
		c.buf = c.small[:0]
		if len(b) > len(c.small) {
			if c.page == nil {
				c.page, _ = c.srv.pages.Get().(*page)
			}
			c.buf = c.page[:0]
		}
	}
	c.buf = append(c.buf, b...)
}

// began is called by the outermost handler: the head was read, and its body
// has this length (-1: chunked). It says whether the connection may move when
// the request is done.
func (c *conn) began(length int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy = true
	if c.tls {
		c.idle = false // the request may have come with the one before, in a read that was that one's
		return false
	}
	c.scan.body(length)
	return c.scan.phase != phRaw
}

// isHTTP2 is called by the outermost handler for a request over HTTP/2.
func (c *conn) isHTTP2() {
	c.mu.Lock()
	c.h2 = true
	c.mu.Unlock()
}

// connKind is how a connection ends.
type connKind uint8

const (
	kindHTTP1    connKind = iota // between two requests
	kindHTTP2                    // by GOAWAY
	kindHijacked                 // as the program likes
)

func (c *conn) kind() connKind {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kindLocked()
}

func (c *conn) kindLocked() connKind {
	switch {
	case c.taken:
		return kindHijacked
	case c.h2 || c.scan.isHTTP2():
		return kindHTTP2
	}
	return kindHTTP1
}

// finished is called when net/http is done with a request and expects another.
func (c *conn) finished() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.first = false
	c.idle = true
	c.busy = false
	if c.scan.phase != phAfter {
		// net/http saw the end of a body that the scanner did not see.
		c.scan.phase = phRaw
		return
	}
	c.scan.next()
}

// pass makes the connection somebody else's: it is never moved any more.
func (c *conn) pass() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.scan.phase = phRaw
	c.taken = true
	c.idle = false
	c.enforce()
	c.cond.Broadcast()
}
