package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
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

	mu    sync.Mutex
	own   queue
	older []queue
	takes func() bool        // whether the own generation takes connections
	alive func(gen int) bool // whether a generation still has workers
	work  chan struct{}      // tells run that there are older queues
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
func (q *queues) inherit(older []queue, takes func() bool, alive func(int) bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.older, q.takes, q.alive = append(q.older, older...), takes, alive
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

// sweep moves what older queues hold and forgets those whose generation has gone. It tells whether any is left.
func (q *queues) sweep() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	var left []queue
	for i := range q.older {
		o := &q.older[i]
		alive := q.alive(o.generation)
		if q.takes() {
			if err := move(&q.own, o); err != nil {
				q.log.Debug("moving a handoff queue", fGeneration(o.generation), zap.Error(err))
				if errors.Is(err, handoff.ErrFull) {
					alive = true
				}
			}
		}
		if alive {
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
