package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"gapless/internal/handoff"
	"gapless/internal/packet"

	"go.uber.org/zap"
)

// moveEvery is how often the leftovers of an older generation's queue are looked for.
const moveEvery = 5 * time.Millisecond

// queue is a generation's handoff queue. The master holds both ends, so that connections in it survive its workers.
type queue struct {
	generation int
	recv, send *os.File

	receiver *handoff.Receiver // of move; nil until it is needed
	sender   *handoff.Sender
}

func (q *queue) close() {
	packet.CloseAll([]*os.File{q.recv, q.send})
	if q.receiver != nil {
		q.receiver.Close()
	}
	if q.sender != nil {
		q.sender.Close()
	}
}

// queues are the handoff queues that a master holds: its own generation's, and those of older ones that still drain,
// whose leftovers it moves into its own.
type queues struct {
	log    *zap.Logger
	forget func(generation int) // the parent need not keep a queue any more

	mu     sync.Mutex
	own    queue
	older  []queue
	takes  func() bool   // whether the own generation takes connections
	living func() []int  // the generations that still have workers
	work   chan struct{} // tells run that there are older queues
}

// openQueue opens the queue of this master's generation.
func (m *master) openQueue() error {
	recv, send, err := handoff.NewPair()
	if err != nil {
		return fmt.Errorf("handoff queue: %w", err)
	}
	m.queues.init(m.log, queue{generation: m.generation, recv: recv, send: send})
	return m.keep.store(queueEntry(m.generation), recv, send)
}

func (q *queues) init(log *zap.Logger, own queue) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.log, q.own = log, own
}

// inherit takes over the queues of older generations.
func (q *queues) inherit(older []queue, takes func() bool, living func() []int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.older, q.takes, q.living = append(q.older, older...), takes, living
	if len(q.older) > 0 {
		q.work <- struct{}{}
	}
}

// target returns the queue that draining workers give their connections to, or nil if nobody would take them.
func (q *queues) target() *os.File {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.takes == nil || !q.takes() {
		return nil
	}
	return q.own.send
}

// all returns the queues, own one first, for the next master.
func (q *queues) all() []queue {
	q.mu.Lock()
	defer q.mu.Unlock()
	return append([]queue{q.own}, q.older...)
}

// run moves the leftovers until ctx ends.
func (q *queues) run(ctx context.Context) error {
	for {
		select {
		case <-q.work:
		case <-ctx.Done():
			return ctx.Err()
		}
		tick := time.NewTicker(moveEvery)
		for q.sweep() {
			select {
			case <-tick.C:
			case <-ctx.Done():
				tick.Stop()
				return ctx.Err()
			}
		}
		tick.Stop()
	}
}

// sweep moves what older queues hold and forgets those that nobody uses. It tells whether any is left.
func (q *queues) sweep() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	living, takes := q.living(), q.takes()
	var left []queue
	for i := range q.older {
		o := &q.older[i]
		// Known before it is emptied: who has gone by then can put nothing into it afterwards.
		used := q.used(o.generation, living)
		if takes {
			if err := move(&q.own, o); err != nil {
				q.log.Debug("moving a handoff queue", fGeneration(o.generation), zap.Error(err))
				used = true // connections may still wait in it; packets that cannot be read are gone by the next sweep
			}
		}
		if used {
			left = append(left, *o)
			continue
		}
		o.close()
		if q.forget != nil {
			q.forget(o.generation)
		}
	}
	q.older = left
	return len(left) > 0
}

// refuse is called before workers are told to drain with nobody to take over: everything stops, or the new generation takes
// no connections. They take what is in their queue then, and nobody looks at it afterwards. So from here on nothing can be
// put into a queue: who drains since an earlier upgrade goes on serving what it has. What has been given away already is
// theirs to take. stop says that it is this generation that is told, and not the one before.
func (q *queues) refuse(stop bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	last := -1 // among the older ones, the queue of those who are told
	for i, o := range q.older {
		if !stop && (last < 0 || o.generation > q.older[last].generation) {
			last = i
		}
	}
	into, taken := &q.own, stop && q.takes()
	if last >= 0 {
		into, taken = &q.older[last], true
	}
	failed := false
	for i := range q.older {
		if o := &q.older[i]; o != into {
			err := o.shut()
			if err == nil && taken {
				err = move(into, o)
			}
			if err != nil {
				failed = true // some may still wait in it: what they are to be moved to stays open
				q.log.Warn("Connections may be lost in a handoff queue", fGeneration(o.generation), zap.Error(err))
			}
		}
	}
	if into == &q.own && !stop || failed {
		return
	}
	if err := into.shut(); err != nil {
		q.log.Warn("A handoff queue stays open", fGeneration(into.generation), zap.Error(err))
	}
}

// shut lets nothing more into a queue.
func (q *queue) shut() error {
	if err := q.open(); err != nil {
		return err
	}
	return q.sender.Shut()
}

// used tells whether a worker that lives may have a generation's queue: one of that generation takes connections from it,
// and gives them to it after a reload. One of another generation gives them to the queue that was in charge when it was
// told to drain: the next after its own, or, if its generation was staged and aborted, the last before. So it has none
// beyond the queue that is next to its generation on either side. Those of the own generation have its queue alone.
func (q *queues) used(generation int, living []int) bool {
	for _, g := range living {
		between := func(o queue) bool { return min(g, generation) < o.generation && o.generation < max(g, generation) }
		if g != q.own.generation && !between(q.own) && !slices.ContainsFunc(q.older, between) {
			return true
		}
	}
	return false
}

// open makes the ends usable in this process. They stay open: a receiver may hold a connection that it found no room for.
func (q *queue) open() (err error) {
	if q.receiver == nil {
		var f *os.File
		if f, err = packet.Dup(q.recv, "handoff"); err == nil {
			q.receiver, err = handoff.NewReceiver(f)
		}
	}
	if err == nil && q.sender == nil {
		var f *os.File
		if f, err = packet.Dup(q.send, "handoff"); err == nil {
			q.sender, err = handoff.NewSender(f)
		}
	}
	return err
}

func move(dst, src *queue) error {
	if err := errors.Join(dst.open(), src.open()); err != nil {
		return err
	}
	_, err := handoff.Move(dst.sender, src.receiver)
	return err
}
