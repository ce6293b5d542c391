package gapless

import (
	"context"
	"time"

	"gapless/internal/handoff"
)

const (
	// stopIdle is how long idle connections are waited for when everything
	// stops: long enough for a client that is just about to send.
	stopIdle = time.Second
	// endingGrace is how long connections may take, once idle ones end, to
	// complete a request that they have begun to send.
	endingGrace = 5 * time.Second
	// kickBatch bounds how many connections are woken before the queue's room
	// is looked at.
	kickBatch = 128
)

// order is an order to drain.
type order struct {
	from     time.Time
	queue    *handoff.Sender // where connections go, or nil
	deadline time.Duration   // from `from`, after which the process is killed; 0 = none
	spread   time.Duration   // over which long-lived connections end before the deadline
	stop     bool            // nothing takes over
}

// margin is the part of the time before the deadline that is kept for what
// cannot be waited for: idle connections that must be closed, GOAWAY.
func (o order) margin() time.Duration { return min(2*time.Second, o.deadline/4) }

// idleUntil is when waiting for idle connections ends; the zero time means
// never.
func (o order) idleUntil() time.Time {
	switch {
	case o.stop && o.deadline > 0:
		return o.from.Add(min(stopIdle, o.deadline-o.margin()))
	case o.stop:
		return o.from.Add(stopIdle)
	case o.deadline > 0:
		return o.from.Add(o.deadline - o.margin())
	}
	return time.Time{}
}

// drain ends the server in the order that loses nothing: accept no more; let
// connections leave, or say on every response that it is the last; end what is
// idle; wait for what is active. http.Server.Shutdown comes last, since it
// drops requests that were read at that moment and closes what is idle unasked.
//
// The mode is set and the accept loops have ended; loops waits for the one that takes connections
// from the queue.
func (s *server) drain(o order, loops func()) {
	s.p.received() // nothing comes through the queue any more
	s.idle.finish()
	unparked := make(chan struct{})
	go func() {
		s.parks.Wait()
		close(s.unpark)
		loops()
		close(unparked)
	}()

	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := o.idleUntil()
	var ending, shut time.Time
	for {
		h1, h2 := s.kickAll()
		now := time.Now()
		switch s.mode.Load() {
		case modeHanding:
			if s.broken.Load() || s.p.stopping() {
				s.mode.Store(modeClosing)
			}
		case modeClosing:
			if s.p.stopping() && (limit.IsZero() || limit.After(now.Add(stopIdle))) {
				limit = now.Add(stopIdle)
			}
		}
		if ending.IsZero() && (h1 == 0 || !limit.IsZero() && now.After(limit)) {
			ending = now
			s.mode.Store(modeEnding)
			continue
		}
		if h1 == 0 {
			// Nothing is left that Shutdown could lose. It sends GOAWAY and
			// calls what the program registered with RegisterOnShutdown, which
			// may not bear to be called again.
			if shut.IsZero() {
				shut = now
				s.goAway()
			} else if h2 > 0 && now.Sub(shut) > endingGrace {
				s.closeUntold()
			}
			if s.count() == 0 {
				break
			}
		} else if !ending.IsZero() && now.Sub(ending) > endingGrace {
			s.closeUnbegun()
		}
		s.pause(tick.C)
	}
	<-unparked
	_ = s.srv.Close()
}

// pause waits for the next look at the connections: until the tick, or until
// the last one is gone.
func (s *server) pause(tick <-chan time.Time) {
	for {
		select {
		case <-s.changed:
			if s.count() == 0 {
				return
			}
		case <-tick:
			return
		}
	}
}

// kickAll wakes all connections that wait for a request, where the mode lets
// them leave. It says how many connections are HTTP/1 and net/http's (or
// parked), and how many are HTTP/2; hijacked ones are neither.
func (s *server) kickAll() (h1, h2 int) {
	mode := s.mode.Load()
	h1 = s.idle.leave() // first, as connections go from there to the others
	for i, c := range s.snapshot() {
		switch c.kind() {
		case kindHTTP1:
			h1++
		case kindHTTP2:
			h2++
		case kindHijacked:
		}
		if mode != modeClosing {
			c.kick()
		}
		if mode == modeHanding && i%kickBatch == kickBatch-1 && s.full.Swap(false) {
			_ = s.out.Load().WaitRoom(10 * time.Millisecond)
		}
	}
	return h1, h2
}

// goAway sends GOAWAY on all HTTP/2 connections. Those whose first request comes
// while the server drains are told by its answer.
func (s *server) goAway() {
	ctx, cancel := context.WithTimeout(context.Background(), 250*time.Millisecond)
	defer cancel()
	_ = s.srv.Shutdown(ctx)
}

// closeUntold closes the HTTP/2 connections that have never had a request: one
// that began as Shutdown looked at all is never told that the server goes
// (golang/go#81153).
func (s *server) closeUntold() {
	for _, c := range s.snapshot() {
		c.mu.Lock()
		untold := !c.h2 && c.kindLocked() == kindHTTP2
		c.mu.Unlock()
		if untold {
			_ = c.Conn.Close() // wakes net/http, which closes c
		}
	}
}

// closeUnbegun closes the connections whose client has not completed a request
// that it began, or a handshake.
func (s *server) closeUnbegun() {
	for _, c := range s.snapshot() {
		c.mu.Lock()
		late := !c.busy && c.kindLocked() == kindHTTP1
		c.mu.Unlock()
		if late {
			_ = c.Conn.Close() // wakes net/http, which closes c
		}
	}
}
