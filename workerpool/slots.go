package workerpool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"gapless/internal/pidfd"

	"go.uber.org/zap"
)

// Recipe is how the workers of one revision of a generation are started.
type Recipe struct {
	Revision int
	// Launch prepares the start of a worker in a slot, whose sockets are already known. The pool adds the worker's own
	// notify socket, channel and output.
	Launch func(slot int, sockets []Socket) (Launch, error)
}

// slot is a place for one worker of the pool's own generation. Guarded by the pool's mu.
type slot struct {
	n       int
	recipe  Recipe
	current *worker // nil while there is none
	next    *worker // being started to replace current; nil mostly
	// tended says that a goroutine starts, restarts or replaces the slot's worker: there is one at most.
	tended   bool
	yield    bool // a reload waits for the slot
	leaving  bool // the slot is being given up: nobody is restarted in it
	failures int  // deaths in a row
	restarts int  // in all

	lastDeath string
	lastLines []string

	// hurry ends the wait before the next restart: something has changed that may mend it. Buffered.
	hurry chan struct{}
}

// Start fills n slots and returns when all their workers are ready. On the first that fails, or when ctx ends, it
// returns the reason and leaves the others running for Kill to end.
func (p *Pool) Start(ctx context.Context, n int) error {
	_, err := p.grow(ctx, 0, n)
	return err
}

// grow starts workers in the slots from first to n-1.
func (p *Pool) grow(ctx context.Context, first, n int) ([]*slot, error) {
	results := make(chan error, n)
	var slots []*slot
	for i := first; i < n; i++ {
		p.mu.Lock()
		s := &slot{n: i, recipe: p.recipe, tended: true, hurry: make(chan struct{}, 1)}
		p.slots = append(p.slots, s)
		p.mu.Unlock()
		slots = append(slots, s)
		p.wg.Go(func() {
			w, err := p.spawn(s, false)
			if err == nil {
				err = w.started()
			}
			p.untend(s, err == nil)
			results <- err
		})
	}
	for range slots {
		select {
		case err := <-results:
			if err != nil {
				return slots, p.explain(err)
			}
		case <-ctx.Done():
			return slots, context.Cause(ctx)
		}
	}
	return slots, nil
}

// explain adds to why a worker ended as it started that another one listens at an address of its own, if one does: only the
// first of them gets it, and the others end because of that.
func (p *Pool) explain(err error) error {
	if e := (*StartError)(nil); !errors.As(err, &e) || e.Err != nil {
		return err
	}
	starting := p.all(func(i Info) bool { return i.State == Starting && i.Role == "" })
	slices.SortFunc(starting, func(a, b *worker) int { return a.info.Slot - b.info.Slot })
	for _, w := range starting {
		if at := w.elsewhere(); at != "" {
			return fmt.Errorf("%w: %s", err, at)
		}
	}
	return err
}

// started waits until the worker is ready, or is gone without having been.
func (w *worker) started() error {
	select {
	case <-w.ready:
		return nil
	case <-w.gone:
		return w.failure
	}
}

// tend claims a slot for starting, restarting or replacing its worker; false: somebody else does so, or it is over.
func (p *Pool) tend(s *slot) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.tended || s.leaving || p.stopped {
		return false
	}
	s.tended, s.yield = true, false
	return true
}

// untend gives the slot back. up says that it has had a worker that served: if that is gone, it died while the slot was
// claimed, and is restarted now.
func (p *Pool) untend(s *slot, up bool) {
	p.mu.Lock()
	again := up && s.current == nil && !s.leaving && !p.stopped
	s.tended = again
	p.mu.Unlock()
	if again {
		p.wg.Go(func() { p.restart(s, 0) })
	}
}

// spawn starts a worker in s; beside the current one if replace is set.
func (p *Pool) spawn(s *slot, replace bool) (*worker, error) {
	p.spawning.RLock()
	defer p.spawning.RUnlock()
	p.mu.Lock()
	refused, recipe := p.frozen || p.stopped || s.leaving, s.recipe
	p.mu.Unlock()
	if refused {
		return nil, ErrFrozen
	}
	w, err := p.launch(s.n, recipe)
	if err != nil {
		return nil, fmt.Errorf("start worker %d: %w", s.n, err)
	}
	p.observe(Event{Info: w.info, From: Starting})
	p.mu.Lock()
	if replace {
		s.next = w
	} else {
		s.current = w
	}
	leaving := s.leaving
	p.mu.Unlock()
	p.run(w)
	if leaving { // since we looked: whoever gave the slot up did not see this worker
		w.end("its slot is given up")
	}
	return w, nil
}

// exited is called by the goroutine of a worker that has gone.
func (p *Pool) exited(w *worker, was State, status pidfd.Status) {
	p.mu.Lock()
	delete(p.workers, w)
	if len(p.workers) == 0 && p.empty != nil {
		close(p.empty)
		p.empty = nil
	}
	var s *slot
	for _, c := range p.slots {
		if c.next == w {
			c.next = nil
		}
		if c.current == w {
			c.current, s = nil, c
			c.lastDeath, c.lastLines = status.String(), w.out.lastLines()
		}
	}
	died := s != nil && w.wasUp && !p.stopped && !s.leaving
	restart := died && !s.tended
	if restart {
		s.tended = true
	}
	p.mu.Unlock()
	if !died {
		return
	}
	p.log.Warn("Worker died; it is replaced", zap.Int("worker", w.info.Slot), zap.Int("pid", w.info.PID),
		zap.Int("generation", w.info.Generation), zap.String("state", was.String()), zap.String("reason", status.String()))
	if restart {
		p.wg.Go(func() { p.restart(s, time.Since(w.info.Started)) })
	}
}

// restart puts new workers into a slot, which the caller tends, until one becomes ready.
func (p *Pool) restart(s *slot, lived time.Duration) {
	for {
		p.mu.Lock()
		if lived >= backoffStable {
			s.failures = 0
		}
		s.failures++
		s.restarts++
		failures, leaving := s.failures, s.leaving
		p.mu.Unlock()
		if leaving || !p.pause(backoff(failures, p.cfg.Random()), s.hurry) {
			p.untend(s, false)
			return
		}
		if p.yields(s) {
			return
		}
		w, err := p.spawn(s, false)
		switch {
		case errors.Is(err, ErrFrozen):
			continue // pause waits for the thaw, or ends
		case err != nil:
			lived = 0
			p.mu.Lock()
			s.lastDeath = err.Error()
			p.mu.Unlock()
			p.log.Error("Worker cannot be started; trying again", zap.Int("worker", s.n), zap.Error(err))
			continue
		}
		if err := w.started(); err == nil {
			p.untend(s, true)
			return
		}
		lived = time.Since(w.info.Started)
		p.log.Error("Worker did not become ready; trying again", zap.Int("worker", s.n), zap.Error(w.failure))
	}
}

// yields gives a slot whose worker is to be restarted to the reload that waits for it, if one does.
func (p *Pool) yields(s *slot) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.yield {
		s.tended, s.yield = false, false
		return true
	}
	return false
}

// pause waits for d, or less if hurry says so, and while the pool is frozen; false: the pool has stopped.
func (p *Pool) pause(d time.Duration, hurry <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-hurry:
	case <-p.stopC:
		return false
	}
	select {
	case <-p.thaw():
		return true
	case <-p.stopC:
		return false
	}
}

// thaw is closed while the pool is not frozen.
func (p *Pool) thaw() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.thawed
}
