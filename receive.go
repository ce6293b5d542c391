package gapless

import (
	"errors"
	"io"
	"os"
	"time"

	"gapless/internal/handoff"
)

// received waits until nothing comes through the queue any more.
func (p *process) received() {
	p.readyOnce.Do(func() { close(p.receive) }) // draining before it was ready
	<-p.receive
}

// receiveLoop takes connections from the queue until the process drains.
func (p *process) receiveLoop() {
	defer close(p.receive)
	woken := make(chan struct{})
	quit := make(chan struct{})
	go func() {
		defer close(woken)
		select {
		case <-p.draining:
			_ = p.queue.SetReadDeadline(time.Unix(1, 0))
		case <-quit:
		}
	}()
	defer func() { close(quit); <-woken }()

	var room headroom
	for !p.isDraining() {
		// It may wait for hours, so only then is it known whether there is room.
		err := p.queue.Wait()
		if err == nil && !room.enough() {
			// Other workers may take what waits, or it stays in the queue.
			pause(p.draining, 20*time.Millisecond)
			continue
		}
		var h *handoff.Conn
		if err == nil {
			h, err = p.queue.TryReceive()
		}
		switch {
		case err == nil:
			p.place(h)
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, handoff.ErrEmpty):
		case errors.Is(err, handoff.ErrPacket), errors.Is(err, handoff.ErrLost):
		case errors.Is(err, io.EOF):
			return
		default:
			pause(p.draining, time.Second)
		}
	}
	if p.order.queue != nil {
		return // the master moves on what is left
	}
	for room.enough() {
		h, err := p.queue.TryReceive()
		if errors.Is(err, handoff.ErrPacket) || errors.Is(err, handoff.ErrLost) {
			continue
		}
		if err != nil {
			return
		}
		p.place(h)
	}
}

func pause(stop <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-stop:
	}
}

// place gives a connection to the server of its listener. Where there is none
// it is closed: to serve it as something else could open what was closed to it.
func (p *process) place(h *handoff.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.servers {
		if s.name == h.Listener && !s.tls {
			if (len(h.Pending) == 0 && s.idle.keep(h)) || s.adopt(h) {
				return
			}
			break // headroom was wrong: somebody has taken all descriptors since
		}
	}
	_ = h.Close()
}

// headroom says whether the process has descriptors to spare. The kernel
// closes a connection that it cannot install, so the answer must be right
// before a packet is taken.
type headroom struct {
	left  int       // packets that may be taken before the next look
	until time.Time // when the look gets too old
}

const (
	spareFDs = 64
	lookAge  = 50 * time.Millisecond
)

func (h *headroom) enough() bool {
	if h.left > 0 && time.Now().Before(h.until) {
		h.left--
		return true
	}
	if !canOpen(spareFDs) {
		return false
	}
	h.left, h.until = spareFDs/2, time.Now().Add(lookAge)
	return true
}
