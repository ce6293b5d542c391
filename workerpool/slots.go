package workerpool

import (
	"context"
	"errors"
	"fmt"
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
	leaving  bool // the slot is being given up: nobody is restarted in it
	failures int  // deaths in a row
	restarts int  // in all

	lastDeath string
	lastLines []string

	// hurry ends the wait before the next restart: something has changed that may mend it. Buffered.
	hurry chan struct{}
}

// Errors of replacing.
var (
	// ErrSlotBusy says that a slot's worker is being started or replaced already.
	ErrSlotBusy = errors.New("the slot's worker is being started already")
	// ErrNoWorker says that there is no such worker, or no longer.
	ErrNoWorker = errors.New("no such worker")
)

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
				return slots, err
			}
		case <-ctx.Done():
			return slots, context.Cause(ctx)
		}
	}
	return slots, nil
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
	s.tended = true
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

// renew replaces a slot's worker by one of a new recipe. A slot that is being restarted, perhaps for the tenth time because
// of what the reload mends, is given the recipe, and is done when its worker is ready, or has failed with it.
func (p *Pool) renew(ctx context.Context, s *slot, r Recipe, o Order) error {
	tick := time.NewTicker(renewPoll)
	defer tick.Stop()
	restarts := -1
	for {
		if restarts < 0 {
			if err := p.replace(s, &r, o); !errors.Is(err, ErrSlotBusy) {
				return err
			}
		}
		p.mu.Lock()
		gone := s.leaving || p.stopped
		if !gone && restarts < 0 && s.current == nil && s.next == nil { // in the wait between two restarts
			s.recipe, s.failures, restarts = r, 0, s.restarts
			select {
			case s.hurry <- struct{}{}:
			default:
			}
		}
		current, tries, death := s.current, s.restarts, s.lastDeath
		p.mu.Unlock()
		switch {
		case gone:
			return nil
		case restarts >= 0 && current != nil && current.snapshot().Revision == r.Revision && isClosed(current.ready):
			return nil
		case restarts >= 0 && tries > restarts+1:
			return fmt.Errorf("worker %d: %w: %s", s.n, ErrNotReady, death)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
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
			case s.next != nil:
				if s.current != nil {
					old = append(old, s.current)
				}
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
			select {
			case <-time.After(renewPoll):
			case <-p.stopC:
				return ErrFrozen
			case <-ctx.Done():
				return fmt.Errorf("worker %d: %w", s.n, ErrSlotBusy)
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

// Scale changes the number of slots to n and returns when all new workers are ready, or all surplus ones gone. If a new
// worker fails, all new slots are given up again.
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
		p.shrink(have, o)
		return err
	}
	for _, w := range p.shrink(n, o) {
		select {
		case <-w.gone:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// shrink gives up the slots from n on and returns their workers.
func (p *Pool) shrink(n int, o Order) []*worker {
	p.mu.Lock()
	var out []*worker
	for _, s := range p.slots[n:] {
		s.leaving = true
		for _, w := range []*worker{s.current, s.next} {
			if w != nil {
				out = append(out, w)
			}
		}
	}
	p.slots = p.slots[:n]
	p.mu.Unlock()
	for _, w := range out {
		w.order(o)
	}
	return out
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
