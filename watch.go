package gapless

import (
	"errors"
	"net"
	"os"
	"sync"
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

// longAgo is later than what net/http sets to end a wait, and earlier than any deadline that is meant.
var longAgo = time.Unix(1<<20, 0)

// lazyWatch is a watch that has not begun.
type lazyWatch struct {
	armed   bool // the server's lazyWatches know of it
	waiting bool // there is one
	due     bool // it is to begin
	number  uint64
	met     uint64 // the last number that was met
}

// lazyWatches begins the watches of a server that it has met twice. It has one timer for all: one for each connection
// would wake a processor for nearly every tenth request, as few watches live until they are due.
type lazyWatches struct {
	mu      sync.Mutex
	armed   []*conn
	spare   []*conn // the memory of the last look
	timer   *time.Timer
	running bool
}

// add is called with c.mu held.
func (l *lazyWatches) add(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed = append(l.armed, c)
	if l.running {
		return
	}
	l.running = true
	if l.timer == nil {
		l.timer = time.AfterFunc(watchAfter, l.look)
		return
	}
	l.timer.Reset(watchAfter)
}

// look is the timer's. It ends by itself when nobody waits.
func (l *lazyWatches) look() {
	l.mu.Lock()
	met := l.armed
	l.armed, l.spare = l.spare[:0], nil
	l.mu.Unlock()
	stay := met[:0]
	for _, c := range met {
		if c.meet() {
			stay = append(stay, c)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(met[len(stay):]) // connections that have ended are not kept
	l.spare = l.armed
	l.armed = append(stay, l.armed...)
	clear(l.spare)
	if l.running = len(l.armed) > 0; l.running {
		l.timer.Reset(watchAfter)
	} else {
		l.armed, l.spare = nil, nil
	}
}

// meet begins the watch that was met before. It returns false if there is nothing to meet again.
func (c *conn) meet() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := &c.lazy
	switch {
	case !l.waiting || c.closed:
		l.armed = false
	case l.met == l.number:
		l.armed = false
		l.due = true
		c.cond.Broadcast()
	default:
		l.met = l.number
	}
	return l.armed
}

// SetDeadline is as in net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.Conn.SetWriteDeadline(t))
}

// SetReadDeadline is as in net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	if t.IsZero() && c.free.Load() {
		return nil // which is three of the five calls for a request
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rd = t
	c.free.Store(t.IsZero() && !c.closed)
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
		if !c.rd.After(longAgo) { // net/http ends the watch so, and a look at the clock is not for nothing
			return errTimeout()
		}
		d := time.Until(c.rd)
		if d <= 0 {
			return errTimeout()
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
			c.srv.watches.add(c)
		}
		c.cond.Wait()
		l.waiting = false
	}
	return nil
}
