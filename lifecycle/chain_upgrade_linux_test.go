package lifecycle

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync/atomic"

	"gapless/internal/packet"
	"gapless/upgrade"
)

// flip stands for tableflip.
type flip struct{ *fileStore }

// Upgrade is not called: the attempts are the chain's.
func (flip) Upgrade() error { return errors.New("not here") }

// Ready does nothing.
func (flip) Ready() error { return nil }

// WaitForParent returns at once.
func (flip) WaitForParent(context.Context) error { return nil }

// HasParent is not asked.
func (flip) HasParent() bool { return false }

// before is the master in charge, as its successor sees it.
type before struct {
	offer     upgrade.Offer
	owner     upgrade.Owner
	fails     bool        // the commit
	calls     chan func() // for the attempt's goroutine
	committed chan struct{}
	aborted   chan struct{}
	left      <-chan struct{} // the master in charge has ended

	stage  upgrade.Stage   // nil: it is not to be staged
	ctx    context.Context // of the attempt
	spares atomic.Bool

	// Written by the attempt's goroutine.
	frozen bool
	reason error
	undo   context.CancelCauseFunc // of Hold; nil before it was called
	held   chan error              // what Hold decides
	// Written by the successor's.
	failure string
}

func (b *before) on(f func()) {
	done := make(chan struct{})
	b.calls <- func() { defer close(done); f() }
	<-done
}

// Offer is that of the attempt.
func (b *before) Offer() upgrade.Offer { return b.offer }

// Progress reaches the owner.
func (b *before) Progress(p upgrade.Progress) { b.on(func() { b.owner.Progress(p) }) }

// Lanes returns duplicates, as if they had travelled.
func (b *before) Lanes(_ context.Context, address string, count int) (names []string, files []*os.File, err error) {
	b.on(func() {
		var lent []*os.File
		names, lent, err = b.owner.Lanes(address, count)
		for _, f := range lent {
			dup, dupErr := packet.Dup(f, f.Name())
			files, err = append(files, dup), errors.Join(err, dupErr)
		}
	})
	return names, files, err
}

// Knock is not used.
func (b *before) Knock(context.Context, string, string) (*os.File, error) {
	return nil, errors.New("nobody is asked")
}

// Has passes a parcel on, as if it had travelled.
func (b *before) Has(p upgrade.Parcel) error {
	files := p.Files
	p.Files = nil
	for _, f := range files {
		dup, err := packet.Dup(f, f.Name())
		if err != nil {
			return err
		}
		p.Files = append(p.Files, dup)
	}
	b.on(func() { b.stage.Parcel(p) })
	return nil
}

// Seats passes them on.
func (b *before) Seats(seats upgrade.Seats) { b.on(func() { b.stage.Seats(seats) }) }

// Spared tells whether the workers may have clients.
func (b *before) Spared() bool { return b.spares.Load() }

// hold has the stage decide, and waits for that or for the end of the attempt.
func (b *before) hold() error {
	b.on(func() {
		if b.reason != nil {
			return
		}
		ctx, cancel := context.WithCancelCause(b.ctx)
		b.undo, b.held = cancel, make(chan error, 1)
		go func() { b.held <- b.stage.Hold(ctx) }()
	})
	if b.held == nil {
		return b.reason
	}
	select {
	case err := <-b.held:
		b.held <- err // for whoever waits for the end of Hold
		if err != nil {
			b.on(func() { b.abort(err) })
		}
		return err
	case <-b.aborted:
		return b.reason
	}
}

// abort gives the attempt up. It is called by the attempt's goroutine.
func (b *before) abort(reason error) {
	if b.reason != nil {
		return
	}
	b.reason = reason
	b.takeBack(reason)
	close(b.aborted)
}

// takeBack ends what the stage does for the new generation.
func (b *before) takeBack(reason error) {
	if b.stage == nil {
		return
	}
	if b.undo != nil {
		b.undo(reason)
	}
	b.stage.Undo()
	if b.stage.Spared() {
		b.spares.Store(true)
	}
}

// Commit returns when the master in charge has ended.
func (b *before) Commit(_ context.Context, accept func([]upgrade.Parcel) error) error {
	var parcels []upgrade.Parcel
	var err error
	if b.stage != nil {
		if err := b.hold(); err != nil {
			return err
		}
	}
	b.on(func() {
		if b.reason != nil {
			err = b.reason
			return
		}
		b.frozen = true
		parcels, err = b.owner.Freeze()
	})
	if err == nil && b.fails {
		for _, p := range parcels {
			packet.CloseAll(p.Files)
		}
		err = errors.New("the parcels were lost")
	}
	if err == nil {
		err = accept(parcels)
	}
	if err != nil {
		return err
	}
	close(b.committed)
	<-b.left
	return nil
}

// Fail notes the reason.
func (b *before) Fail(reason string, _ []string) { b.failure = reason }

// Aborted is closed when the attempt is given up.
func (b *before) Aborted() <-chan struct{} { return b.aborted }

// Reason is why.
func (b *before) Reason() error { return b.reason }

// Close does nothing.
func (b *before) Close() {}

// attempt plays an upgrade.Attempt, with a successor in this process.
func (s *reign) attempt(a *upgrade.Attempt, ctx context.Context) error {
	c, generation := s.c, a.Offer.Generation
	pred := &before{offer: a.Offer, owner: a.Owner, calls: make(chan func()), committed: make(chan struct{}),
		aborted: make(chan struct{}), left: s.over, stage: a.Stage, ctx: ctx}
	if st := s.m.stage.Load(); st != nil {
		st.spares = func() error { pred.spares.Store(true); return nil }
	}
	c.locked(func() {
		if c.numbers[generation] {
			c.fault("generation %d was used twice", generation)
		}
		c.numbers[generation] = true
		pred.fails = c.outcome == "fail"
		c.note("generation %d begins", generation)
	})
	next := c.newReign(generation, pred)
	go next.run()
	cancelled := ctx.Done()
	for {
		select {
		case f := <-pred.calls:
			f()
		case <-pred.committed:
			s.next = next
			c.locked(func() { c.last = next })
			return nil
		case <-cancelled:
			if cancelled = nil; !pred.frozen {
				pred.abort(context.Cause(ctx))
			}
		case <-next.over:
			pred.takeBack(next.err)
			if pred.held != nil {
				<-pred.held
			}
			for _, p := range c.alive() {
				if p.generation == generation && !pred.Spared() {
					c.locked(func() { c.fault("generation %d never was in charge and left %d", generation, p.pid) })
				}
			}
			if pred.Spared() { // its workers are another's, so it can be buried only when they have ended
				c.locked(func() { next.gone = true; c.left = append(c.left, next) })
			} else {
				next.bury()
			}
			if pred.frozen {
				a.Owner.Thaw()
			}
			if a.Stage != nil {
				a.Stage.Left()
			}
			return &upgrade.AbortError{Generation: generation, Reason: pred.failure, Err: next.err}
		}
	}
}

// deliver brings signals to whoever is in charge, as the parent does: what was not acted on is for the next.
func (c *chain) deliver() {
	defer close(c.delivered)
	s := c.first
	var sent, pending []linkMessage
	for {
		var head linkMessage
		var signals chan<- linkMessage
		s.m.link.mu.Lock()
		paused := s.m.link.paused // nil mostly
		s.m.link.mu.Unlock()
		if len(pending) > 0 && paused == nil {
			head, signals = pending[0], s.m.link.signals
		}
		select {
		case msg := <-c.outbox:
			sent, pending = append(sent, msg), append(pending, msg)
		case signals <- head:
			pending = pending[1:]
		case <-paused:
		case <-s.over:
			if s = s.next; s == nil {
				return
			}
			select {
			case <-s.charge:
			case <-s.over:
			}
			pending = slices.DeleteFunc(slices.Clone(sent), s.m.link.known)
		}
	}
}
