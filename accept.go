package gapless

import (
	"errors"
	"net"
	"syscall"
	"time"
)

// Where connections come from: the listeners that the process was passed, and the queue from other processes.

// orderGrace is how much later than the end of its listeners a worker may
// learn that it is to drain.
const orderGrace = 5 * time.Second

// acceptor is a listener whose connections are the server's.
type acceptor struct {
	net.Listener
	s       *server
	started func() // once, when somebody waits for connections
}

func (a *acceptor) beneath() net.Listener { return a.Listener }

func (a *acceptor) Accept() (net.Conn, error) {
	a.started()
	nc, err := a.Listener.Accept()
	if err != nil {
		if errors.Is(err, syscall.EINVAL) && a.s.p.channel != nil {
			// The manager has shut the socket down, which it does when
			// everything stops. Its order to drain may come second.
			pause(a.s.p.draining, orderGrace)
		}
		if a.s.p.isDraining() {
			// A deadline in the past ended the wait. To net/http that would be
			// a reason to try again.
			return nil, net.ErrClosed
		}
		return nil, err
	}
	c, err := newConn(a.s, nc, a.s.tls)
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	a.s.add(c)
	return c.asNetConn(), nil
}

// parkedListener gives net/http the connections that came through the queue
// once they have become active.
type parkedListener struct {
	s *server
	l net.Listener // where such connections were accepted once
}

func (q parkedListener) beneath() net.Listener { return q.l }
func (q parkedListener) Addr() net.Addr        { return q.l.Addr() }
func (q parkedListener) Close() error          { return nil }

func (q parkedListener) Accept() (net.Conn, error) {
	select {
	case nc := <-q.s.parked:
		return nc, nil
	case <-q.s.unpark:
		return nil, net.ErrClosed
	case <-q.s.dead: // http.Server.Close waits for this loop
		return nil, net.ErrClosed
	}
}

// stopAccepting ends the accept loops. What was accepted is served. Where
// everything stops, a few milliseconds go to taking in what the kernel has
// already queued, as nobody else will.
func (s *server) stopAccepting(ls []*inherited, stop bool) {
	for _, l := range ls {
		d, ok := l.Listener.(interface{ SetDeadline(time.Time) error })
		if !ok {
			_ = l.Close()
			continue
		}
		if stop {
			_ = d.SetDeadline(time.Now().Add(5 * time.Millisecond))
		} else {
			_ = d.SetDeadline(time.Unix(1, 0))
		}
	}
}
