package workerpool

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Errors of replacing.
var (
	// ErrSlotBusy says that a slot's worker is being started or replaced already.
	ErrSlotBusy = errors.New("the slot's worker is being started already")
	// ErrNoWorker says that there is no such worker, or no longer.
	ErrNoWorker = errors.New("no such worker")
)

// Replace starts a worker beside the one with this PID, and orders that one to drain when the new one is ready. If the
// new one fails, the old one stays.
func (p *Pool) Replace(pid int, o Order) error {
	p.mu.Lock()
	var s *slot
	for _, c := range p.slots {
		if c.current != nil && c.current.proc.PID() == pid {
			s = c
		}
	}
	p.mu.Unlock()
	if s == nil {
		return fmt.Errorf("worker with pid %d: %w", pid, ErrNoWorker)
	}
	return p.replace(s, nil, o)
}

// replace does so for a slot; with a recipe the new worker, and all that follow in the slot, are of that.
func (p *Pool) replace(s *slot, recipe *Recipe, o Order) error {
	if !p.tend(s) {
		return fmt.Errorf("worker %d: %w", s.n, ErrSlotBusy)
	}
	p.mu.Lock()
	before := s.recipe
	if recipe != nil {
		s.recipe = *recipe
	}
	p.mu.Unlock()
	w, err := p.spawn(s, true)
	if err == nil {
		err = w.started()
	}
	p.mu.Lock()
	old := s.current
	if err == nil {
		s.current, s.next = w, nil
		if recipe != nil {
			s.failures = 0
		}
		if _, lives := p.workers[w]; !lives { // exited saw it in no slot
			s.current = nil
		}
	} else {
		s.recipe = before
	}
	p.mu.Unlock()
	p.untend(s, true)
	if err == nil && old != nil {
		old.order(o)
	}
	return err
}

// renewPoll is how often a reload looks at a slot that somebody else tends.
const renewPoll = 10 * time.Millisecond

// renew replaces a slot's worker by one of a new recipe, when nobody else tends the slot any more.
func (p *Pool) renew(ctx context.Context, s *slot, r Recipe, o Order) error {
	for {
		if err := p.replace(s, &r, o); !errors.Is(err, ErrSlotBusy) {
			return err
		}
		if gone, err := p.yielded(ctx, s); gone || err != nil {
			return err
		}
	}
}

// yielded asks for a slot that somebody tends, and waits a little. Whoever restarts its worker, perhaps for the tenth time
// because of what a reload is to mend, gives it up before the next attempt. gone: the slot itself is given up.
func (p *Pool) yielded(ctx context.Context, s *slot) (gone bool, err error) {
	p.mu.Lock()
	gone = s.leaving || p.stopped
	s.yield = true
	select {
	case s.hurry <- struct{}{}:
	default:
	}
	p.mu.Unlock()
	if gone {
		return true, nil
	}
	t := time.NewTimer(renewPoll)
	defer t.Stop()
	select {
	case <-t.C:
		return false, nil
	case <-ctx.Done():
	}
	// Nobody waits for it any more; if it has been given up meanwhile, its worker is still to be restarted.
	p.mu.Lock()
	s.yield = false
	again := !s.tended && s.current == nil && !s.leaving && !p.stopped
	s.tended = s.tended || again
	p.mu.Unlock()
	if again {
		p.wg.Go(func() { p.restart(s, 0) })
	}
	return false, context.Cause(ctx)
}

// Reload replaces all workers by ones of a new recipe, slot by slot, at most surge at a time. It stops at the first that
// fails: what has been replaced stays, and so does the rest.
func (p *Pool) Reload(ctx context.Context, r Recipe, surge int, o Order) error {
	p.mu.Lock()
	slots := append([]*slot(nil), p.slots...)
	p.mu.Unlock()
	room := make(chan struct{}, max(1, surge))
	failed := make(chan error, len(slots))
	pending := 0
	for _, s := range slots {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		select {
		case err := <-failed:
			pending--
			if err != nil {
				return err
			}
		default:
		}
		pending++
		p.wg.Go(func() {
			failed <- p.renew(ctx, s, r, o)
			<-room
		})
	}
	for ; pending > 0; pending-- {
		select {
		case err := <-failed:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	p.mu.Lock()
	p.recipe = r
	p.mu.Unlock()
	return nil
}

// ReloadAll replaces all workers at once, for those that share a lane: the new ones all start, and only when every one is
// ready does retire take the old ones' share away and do they drain. If one fails, the new ones go and nothing has changed.
func (p *Pool) ReloadAll(ctx context.Context, r Recipe, retire func() error, o Order) (err error) {
	p.mu.Lock()
	slots := append([]*slot(nil), p.slots...)
	p.mu.Unlock()
	var claimed []*slot
	var fresh []*worker
	before := make(map[*slot]Recipe)
	defer func() {
		var old []*worker
		p.mu.Lock()
		for _, s := range claimed {
			switch {
			case err != nil:
				s.recipe = before[s]
			default:
				if s.current != nil {
					old = append(old, s.current)
				}
				// None is left where the new one was ready and has died since: the old one has no share any more either.
				s.current, s.next = s.next, nil
			}
		}
		p.mu.Unlock()
		if err != nil {
			for _, w := range fresh {
				w.end("its reload failed")
			}
		}
		for _, s := range claimed {
			p.untend(s, true)
		}
		for _, w := range old {
			w.order(o)
		}
	}()
	for _, s := range slots {
		for !p.tend(s) {
			gone, err := p.yielded(ctx, s)
			if gone {
				return fmt.Errorf("worker %d: %w", s.n, ErrNoWorker)
			}
			if err != nil {
				return err
			}
		}
		claimed = append(claimed, s)
		p.mu.Lock()
		before[s], s.recipe = s.recipe, r
		p.mu.Unlock()
		w, err := p.spawn(s, true)
		if err != nil {
			return err
		}
		fresh = append(fresh, w)
	}
	for _, w := range fresh {
		if err := w.started(); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	if err := retire(); err != nil {
		return err
	}
	p.mu.Lock()
	p.recipe = r
	p.mu.Unlock()
	return nil
}
