package gapless

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// How connections leave: the methods of conn that matter while the process
// drains, and the arrival of those that have left another.

// readTLS passes ciphertext on. Between two requests, with nothing read of the
// next, a connection can be ended without a loss of what has arrived.
func (c *conn) readTLS(p []byte) (int, error) {
	for {
		if c.idle && !c.h2 && c.srv.mode.Load() == modeEnding && c.kickable() {
			if n, err := c.tryRead(p); n > 0 || err != nil {
				c.idle = c.idle && n == 0
				return n, err
			}
			c.gone = true
			return 0, errGone
		}
		n, err := c.wait(p)
		if n > 0 {
			c.idle = false
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// kickable says whether the connection waits for a request.
func (c *conn) kickable() bool {
	if c.tls {
		return c.idle && !c.h2
	}
	return c.atBoundary()
}

// tryRead reads what is there, without waiting.
func (c *conn) tryRead(p []byte) (int, error) {
	c.enforce() // a kick's deadline may still be there, and nothing is read behind one
	n, err := 0, error(nil)
	cerr := c.rc.Read(func(fd uintptr) bool {
		for {
			n, err = syscall.Read(int(fd), p)
			if !errors.Is(err, syscall.EINTR) {
				return true
			}
		}
	})
	switch {
	case errors.Is(cerr, os.ErrDeadlineExceeded):
		return 0, nil
	case cerr != nil:
		return 0, cerr
	case errors.Is(err, syscall.EAGAIN):
		return 0, nil
	case err != nil:
		return 0, &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", err)}
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// kick wakes the reader if it waits for a request, so that it sees the
// server's mode. It reports whether the connection is one that may leave.
func (c *conn) kick() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone || c.closed || !c.kickable() {
		return false
	}
	if c.reading && !c.kicked {
		c.kicked = true
		c.set = time.Unix(1, 0)
		_ = c.Conn.SetReadDeadline(c.set)
	}
	return true
}

// leave lets the connection go, if the server's mode asks for it and it can:
// to the queue, or, where all ends, for good. It is called between two
// requests.
func (c *conn) leave() bool {
	if c.closed {
		return false // by the program; there is nothing to give away
	}
	switch c.srv.mode.Load() {
	case modeHanding:
		if !c.srv.handOff(c) {
			return false
		}
	case modeEnding:
		if len(c.buf) > 0 {
			return false
		}
		if n, err := c.tryRead(c.one[:]); n > 0 || err != nil {
			c.keep(c.one[:n])
			return false
		}
	default:
		return false
	}
	c.gone = true
	return true
}

// park waits, before net/http has the connection, for the first bytes of a
// request, at most until the deadline if there is one. So a connection that
// came from another process is idle for net/http's IdleTimeout, not new for
// its ReadHeaderTimeout. It reports false when the connection has left or ended.
func (c *conn) park(idle time.Duration) bool {
	if idle > 0 {
		_ = c.SetReadDeadline(time.Now().Add(idle))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		// The request before may have been a POST elsewhere: net/http forgives
		// empty lines behind one, and here it would not know.
		for len(c.buf) > 0 && (c.buf[0] == '\r' || c.buf[0] == '\n') {
			c.buf = c.buf[1:]
		}
		if c.leave() {
			return false
		}
		if len(c.buf) >= len(c.one) {
			break
		}
		if err := c.readAhead(len(c.one) - len(c.buf)); err != nil {
			return false
		}
	}
	c.rd = time.Time{}
	c.parked = false
	return true
}
