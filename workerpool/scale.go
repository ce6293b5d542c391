package workerpool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// ErrNoneReady says that none of the workers that would stay takes new connections now.
var ErrNoneReady = errors.New("none of the workers that would stay is ready now; try again when one is")

// Scale changes the number of slots to n and returns when all new workers are ready, or all surplus ones gone. If a new
// worker fails, all new slots are given up again. Fewer slots are refused while the workers that would be left do not
// serve: the surplus ones are then all that there is.
func (p *Pool) Scale(ctx context.Context, n int, o Order) error {
	p.mu.Lock()
	have := len(p.slots)
	p.mu.Unlock()
	if n > have {
		_, err := p.grow(ctx, have, n)
		if err == nil {
			return nil
		}
		o.Reason = "the slots of a failed scaling are given up"
		_, _ = p.shrink(have, false, o)
		return err
	}
	surplus, err := p.shrink(n, true, o)
	if err != nil {
		return fmt.Errorf("scale to %d: %w", n, err)
	}
	for _, w := range surplus {
		select {
		case <-w.gone:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// shrink gives up the slots from n on and returns their workers. With atOnce it does so only if they need not wait for
// one of the others to become ready.
func (p *Pool) shrink(n int, atOnce bool, o Order) ([]*worker, error) {
	p.mu.Lock()
	surplus := p.surplus(n)
	out := slices.Collect(maps.Keys(surplus))
	if atOnce {
		if !p.spares(surplus) {
			p.mu.Unlock()
			return nil, ErrNoneReady
		}
		for _, w := range out {
			w.leaving = true
		}
	}
	for _, s := range p.slots[n:] {
		s.leaving = true
	}
	p.slots = p.slots[:n]
	p.mu.Unlock()
	for _, w := range out {
		w.order(o)
	}
	return out, nil
}

// CanScale tells whether Scale to n would not be refused now with ErrNoneReady. What it depends on are the states of the
// workers, so whoever is told of their changes can wait for it.
func (p *Pool) CanScale(n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return n >= len(p.slots) || p.spares(p.surplus(n))
}

// surplus returns the workers of the slots from n on. The lock is held.
func (p *Pool) surplus(n int) map[*worker]bool {
	ws := make(map[*worker]bool)
	for _, s := range p.slots[n:] {
		for _, w := range []*worker{s.current, s.next} {
			if w != nil {
				ws[w] = true
			}
		}
	}
	return ws
}

// spares tells whether others take new connections than these workers, or these take none either. The lock is held.
func (p *Pool) spares(these map[*worker]bool) bool {
	return p.takes(func(w *worker) bool { return !these[w] }) || !p.takes(func(w *worker) bool { return these[w] })
}

// takes tells whether a worker that matches takes the new connections of this generation, and goes on to. The lock is
// held.
func (p *Pool) takes(match func(*worker) bool) bool {
	for w := range p.workers {
		if i := w.snapshot(); i.State == Ready && i.Role == "" && i.Generation == p.cfg.Generation && !w.leaving &&
			!isClosed(w.proc.Done()) && match(w) {
			return true
		}
	}
	return false
}

// leave lets a worker stop taking new connections if another one goes on to, and counts it out from then on. The last one
// that takes them has to wait: the channel is closed when somebody else has become ready, and it may ask again.
func (p *Pool) leave(w *worker) (later <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch i := w.snapshot(); {
	case p.stopped, w.leaving, i.State != Ready, i.Role != "", len(p.slots) == 0:
		// Everything stops, or it takes none, or its master has no workers that could.
	case !p.takes(func(other *worker) bool { return other != w }):
		if p.readied == nil {
			p.readied = make(chan struct{})
		}
		return p.readied
	}
	w.leaving = true
	return nil
}

// hasReady lets those ask again that leave made wait.
func (p *Pool) hasReady() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.readied != nil {
		close(p.readied)
		p.readied = nil
	}
}

// SlotInfo is what is known of a slot.
type SlotInfo struct {
	PID       int // of its worker; 0: none
	Ready     bool
	Restarts  int      // in all
	Failures  int      // in a row
	LastDeath string   // how its last worker ended, or why it could not be started; "" if none has
	LastLines []string // that it printed, where they are known
}

// Slots returns what is known of each slot.
func (p *Pool) Slots() []SlotInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	infos := make([]SlotInfo, len(p.slots))
	for i, s := range p.slots {
		infos[i] = SlotInfo{Restarts: s.restarts, Failures: s.failures, LastDeath: s.lastDeath, LastLines: s.lastLines}
		if s.current != nil {
			infos[i].PID, infos[i].Ready = s.current.proc.PID(), s.current.snapshot().State == Ready
		}
	}
	return infos
}
