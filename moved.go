package gapless

import (
	"errors"
	"net"
	"sync/atomic"
	"time"
)

// What a draining worker tells its manager of the bytes that it moves, by
// which that tells a drain that gets on from one that stands still. For TCP
// the kernel counts, so that serving costs nothing more, a file that is sent
// by a single system call gets on as well, and bytes that no client takes do
// not count.

// counted counts what passes through a connection for which the kernel does
// not.
type counted struct {
	net.Conn
	n atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// CloseWrite is that of the connection beneath.
func (c *counted) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

// total is how many bytes have passed through c, both ways together.
func (c *conn) total() int64 {
	if n, ok := c.Conn.(*counted); ok {
		return n.n.Load()
	}
	return tcpBytes(c.rc)
}

// oldest is the age of the oldest request that is with the program; 0: there
// is none. Nobody notes when requests begin, as that would cost each of them
// something. Instead the kernel tells when a connection's client was last
// heard, which is when a request that is waited for was complete; from the
// first look on it is known how long the connection has not been without one.
// The process's mutex is held.
func (s *server) oldest(now time.Time) (age time.Duration) {
	for _, c := range s.snapshot() {
		switch {
		case c.inFlight.Load() == 0:
			c.since = time.Time{}
			continue
		case c.since.IsZero():
			c.since = now
			if _, ok := c.Conn.(*counted); !ok {
				c.since = now.Add(-tcpQuiet(c.rc))
			}
		}
		age = max(age, now.Sub(c.since), time.Millisecond)
	}
	return age
}

// look adds up what has moved since the last look. What connections have moved
// that ended in between is not known, which does no harm: with them gone the
// drain has got on. Those between two requests move nothing, and to ask the
// kernel of ten thousand takes as long as to hand a quarter of them on. The
// process's mutex is held.
func (s *server) look() int64 {
	for _, c := range s.snapshot() {
		if !c.active() {
			continue
		}
		n := c.total()
		if c.looked {
			s.moved += max(0, n-c.seen)
		}
		c.looked, c.seen = true, n
	}
	return s.moved
}

// active says whether anything but the wait for a request may be under way.
func (c *conn) active() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.busy || c.first || c.kindLocked() != kindHTTP1
}
