package gapless

import (
	"errors"
	"net"
	"os"
	"time"
)

// How a connection waits: deadlines, and the watch for the client's end.
//
// net/http sets the read deadline about four times for each request, mostly to what it is, and while a handler runs it
// has one byte read, to notice that the client is gone. Both cost more than all else that is done here for a
// request. So a deadline is told to the kernel's poller only when somebody waits there, and the watch begins in the
// kernel only when the handler has run for a while.

// watchAfter is how long a handler runs before its client is watched: between this and twice this. It is long for a
// small answer, and short for whoever computes one that nobody wants any more.
const watchAfter = 10 * time.Millisecond

// lazyWatch is a watch that has not begun. One timer serves many of them, for arming one each time would cost what is
// to be saved; it begins the watch that it has met twice.
type lazyWatch struct {
	timer   *time.Timer
	armed   bool
	waiting bool   // there is one
	number  uint64 // of the last one
	met     uint64 // by the timer
	due     bool   // it is to begin
}

// SetDeadline is as in net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.Conn.SetWriteDeadline(t))
}

// SetReadDeadline is as in net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rd = t
	c.cond.Broadcast()
	switch {
	case c.kicked:
		return nil // the reader puts it in force when it has woken
	case c.reading, c.closed, c.scan.phase == phRaw:
		c.set = t
		return c.Conn.SetReadDeadline(t)
	}
	return nil
}

// enforce puts the read deadline in force before somebody waits in the kernel.
func (c *conn) enforce() {
	if c.set != c.rd {
		c.set = c.rd
		_ = c.Conn.SetReadDeadline(c.rd)
	}
}

// wait reads from the kernel with mu released. A kick ends it with no bytes
// and no error.
func (c *conn) wait(p []byte) (int, error) {
	c.enforce()
	c.reading = true
	c.mu.Unlock()
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	c.reading = false
	if c.kicked {
		c.kicked = false
		if errors.Is(err, os.ErrDeadlineExceeded) && (c.rd.IsZero() || time.Now().Before(c.rd)) {
			err = nil
		}
	}
	return n, err
}

// watch is what a read between the head of a request and the next request is
// for: to notice that the client is gone. Like net/http it stops to look once
// a byte has come; that byte is kept.
func (c *conn) watch() error {
	if c.closed {
		return net.ErrClosed
	}
	if !c.rd.IsZero() {
		d := time.Until(c.rd)
		if d <= 0 {
			return errTimeout
		}
		if len(c.buf) > 0 {
			timer := time.AfterFunc(d, func() { c.mu.Lock(); c.cond.Broadcast(); c.mu.Unlock() })
			defer timer.Stop()
		}
	}
	switch l := &c.lazy; {
	case len(c.buf) > 0:
		c.cond.Wait()
	case l.due || !c.rd.IsZero():
		l.due = false
		return c.readAhead(1)
	default:
		l.number++
		l.waiting = true
		if !l.armed {
			l.armed = true
			l.arm(c)
		}
		c.cond.Wait()
		l.waiting = false
	}
	return nil
}

func (l *lazyWatch) arm(c *conn) {
	if l.timer == nil {
		l.timer = time.AfterFunc(watchAfter, func() { l.fire(c) })
		return
	}
	l.timer.Reset(watchAfter)
}

// fire is the timer's.
func (l *lazyWatch) fire(c *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !l.waiting || c.closed:
		l.armed = false
	case l.met == l.number:
		l.armed = false
		l.due = true
		c.cond.Broadcast()
	default:
		l.met = l.number
		l.timer.Reset(watchAfter)
	}
}
