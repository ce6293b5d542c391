package workerpool

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"

	"gapless/internal/channel"
	"gapless/internal/notify"

	"go.uber.org/zap"
)

// worker is one process and the goroutine that owns it.
type worker struct {
	pool   *Pool
	proc   Process
	ch     *channel.Conn  // nil: it has none (adopted from a master that gave none)
	notify *notify.Socket // nil likewise
	out    *output        // nil: it writes where gapless writes
	inodes map[uint64]bool

	mu   sync.Mutex // guards info, due and gets, which others read
	info Info
	due  time.Time
	gets progress // on with its drain

	leaving bool // it may stop taking new connections: others go on. Guarded by the pool's mu

	takesDrain bool // written by its goroutine, under mu

	tellsItself bool // it has said hello; written by its goroutine, under mu

	given adapterGiven

	tookAsked time.Time // its goroutine's

	said    chan any      // what the readers heard: a channel.Message, notify.Message, or matched{}
	orders  chan Order    // of the owner of the pool; buffered, the first counts
	kill    chan string   // end it now, with the reason; buffered
	hang    chan string   // it hangs: end it so that it can say where; buffered
	ready   chan struct{} // closed when it is ready
	gone    chan struct{} // closed when it has been reaped and its goroutine is over
	failure error         // why it never was ready; valid after gone
	wasUp   bool          // it had been ready; valid after gone

	readers sync.WaitGroup

	files  sync.Mutex         // guards what follows, and the descriptors against being closed while they are recorded
	stopRd context.CancelFunc // nil while nothing is read
	closed bool
}

// A starting worker is asked this often (ReadyHTTP), and has this long to answer.
const (
	askEvery = 25 * time.Millisecond
	askLimit = 2 * time.Second
)

// tookEvery is how often it is looked for whether a worker has taken connections: each time all of the system's are read.
const tookEvery = 500 * time.Millisecond

// maxSays bounds, in bytes, what is kept of a worker's STATUS=.
const maxSays = 200

// abortGrace is what a hung worker has to dump its stacks after ABRT.
const abortGrace = 3 * time.Second

// groupPoll is how often the members of a group are looked for that outlived their leader: nothing tells of their end.
const groupPoll = 10 * time.Millisecond

// barrier is closed by the owner when it has taken in all that was heard before.
type barrier chan struct{}

// matched says that a line of the worker's output matched --ready log=.
type matched struct{}

func newWorker(p *Pool, info Info, proc Process) *worker {
	return &worker{
		pool: p, proc: proc, info: info,
		said: make(chan any, 16), orders: make(chan Order, 1), kill: make(chan string, 1), hang: make(chan string, 1),
		ready: make(chan struct{}), gone: make(chan struct{}),
	}
}

// snapshot returns what is known of the worker now.
func (w *worker) snapshot() Info {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.info
}

// to is the only writer of a worker's state.
func (w *worker) to(next State, reason string) {
	w.mu.Lock()
	prev := w.info.State
	if !prev.mayBecome(next) {
		id := w.info.ID
		w.mu.Unlock()
		// Every caller looks first, so this is a mistake in this package; the worker itself goes on.
		w.pool.log.DPanic("impossible move", zap.Error(&TransitionError{id, prev, next}))
		return
	}
	now := time.Now()
	took := now.Sub(w.info.Since)
	w.info.State, w.info.Since, w.info.Reason = next, now, reason
	info := w.info
	w.mu.Unlock()
	w.pool.cfg.Keeper.Changed()
	w.pool.observe(Event{Info: info, From: prev, Took: took})
}

// order asks the worker to drain. The first order counts, unless a later one says that everything stops.
func (w *worker) order(o Order) {
	select {
	case w.orders <- o:
		return
	default:
	}
	if !o.Stop {
		return
	}
	// The one that waits is not the last word when everything stops.
	select {
	case <-w.orders:
	default:
	}
	select {
	case w.orders <- o:
	default:
	}
}

// end asks for the worker's immediate end.
func (w *worker) end(reason string) {
	select {
	case w.kill <- reason:
	default:
	}
}

// run owns the worker until it is gone.
func (w *worker) run() {
	defer close(w.gone)
	var (
		cfg       = &w.pool.cfg
		settled   <-chan struct{} // closed when the gate has withdrawn the worker
		order     *Order
		begun     bool            // its drain, by order
		held      <-chan struct{} // closed when an order that had to wait may be looked at again
		dueC      <-chan time.Time
		abortC    <-chan time.Time
		started   = w.info.Started
		startC    <-chan time.Time
		probeC    <-chan time.Time
		probeErrs int
		asked     = make(chan error, 1) // the answer to a question under way
	)
	if w.snapshot().State == Starting && !w.isTold() {
		if cfg.StartTimeout > 0 {
			t := time.NewTimer(time.Until(started.Add(cfg.StartTimeout)))
			defer t.Stop()
			startC = t.C
		}
		switch cfg.Readiness.Mode {
		case ReadyAuto:
			probeC = time.After(probeEvery(0))
		case ReadyDelay:
			probeC = time.After(time.Until(started.Add(cfg.Readiness.Delay)))
		case ReadyHTTP:
			probeC = time.After(askEvery)
		case ReadyNotify, ReadyLog:
		}
	}
	if !w.due.IsZero() { // adopted in the middle of its drain
		dueC = time.After(time.Until(w.due))
	}
	if i := w.snapshot(); i.State == Killing { // adopted after ABRT, or a KILL that may not have been sent
		abortC = time.After(time.Until(i.Since.Add(abortGrace)))
	}
	drain := func() {
		held = nil
		if st := w.snapshot().State; st != Starting && st != Ready && st != Draining {
			return
		}
		if !order.Stop {
			if held = w.pool.leave(w); held != nil {
				return
			}
		}
		begun, probeC, startC = true, nil, nil
		if w.snapshot().State != Draining {
			w.to(Draining, order.Reason)
		}
		withdrawn := make(chan struct{})
		settled = withdrawn
		w.pool.wg.Go(func() {
			defer close(withdrawn)
			cfg.Gate.Withdraw(w.snapshot())
		})
	}
	for {
		select {
		case <-w.proc.Done():
			w.exited(order)
			return

		case said := <-w.said:
			if w.hear(said) {
				probeC, startC = nil, nil
				w.becomeReady("it said so")
			}

		case <-probeC:
			if w.snapshot().State != Starting {
				probeC = nil
				continue
			}
			if cfg.Readiness.Mode == ReadyDelay {
				probeC, startC = nil, nil
				w.becomeReady("its delay is over")
				continue
			}
			if cfg.Readiness.Mode == ReadyHTTP {
				probeC = nil
				w.pool.wg.Go(func() {
					ctx, cancel := context.WithTimeout(context.Background(), askLimit)
					defer cancel()
					asked <- cfg.Asker.Ask(ctx, w.snapshot(), cfg.Readiness.Path)
				})
				continue
			}
			seen, err := cfg.Prober.Waiting(context.Background(), w.proc.PID(), w.inodes)
			switch {
			case seen.Found():
				// It may have said before it opened its socket that it will tell by itself, and perhaps has told.
				switch ready, sure := w.listenAgain(); {
				case ready:
					probeC, startC = nil, nil
					w.becomeReady("it said so")
				case !sure:
					probeC = time.After(probeEvery(time.Since(started)))
				case w.tellsItself:
					probeC = nil
				default:
					probeC, startC = nil, nil
					w.becomeReady(string(seen.How))
				}
			case err != nil && isClosed(w.proc.Done()):
			case w.given.early && w.took():
				probeC, startC = nil, nil
				w.becomeReady("it has taken a connection")
			case err != nil && w.given.said && !w.given.early && !w.tellsItself:
				probeC, startC = nil, nil
				w.becomeReady("it said so")
			case err != nil:
				// One unreadable moment is normal while a process becomes another one; a lasting one is an answer.
				if probeErrs++; probeErrs > 100 {
					w.fail(fmt.Errorf("%w: %w; say with --ready how to tell", ErrNoEvidence, err))
				}
				fallthrough
			default:
				probeC = time.After(probeEvery(time.Since(started)))
			}

		case err := <-asked:
			switch {
			case w.snapshot().State != Starting:
			case err == nil:
				startC = nil
				w.becomeReady("it answers " + cfg.Readiness.Path)
			default:
				w.pool.log.Debug("worker is not ready yet", zap.Int("pid", w.proc.PID()), zap.Error(err))
				probeC = time.After(askEvery)
			}

		case <-startC:
			startC, probeC = nil, nil
			w.fail(fmt.Errorf("%w: %s after %v: %s", ErrNotReady, w.snapshot().State, cfg.StartTimeout, w.hint()))

		case o := <-w.orders:
			if o.Stop && w.isTold() && w.takesDrain {
				// It may be giving its connections to workers that end as well. This order shortens the first one.
				_ = w.ch.Send(channel.Drain{Deadline: o.Timeout, Extra: o.Extra, Spread: o.Spread, Stop: true}, nil)
			}
			switch {
			case w.isTold() || order != nil && !o.Stop:
				continue
			case order == nil:
				order = &o
			default:
				*order = o
			}
			if !begun {
				drain()
			}

		case <-held:
			drain()

		case <-settled:
			settled = nil
			d, frozen := w.tell(*order)
			if frozen != nil {
				settled = frozen // if it thaws at all: else the next master tells
			} else if d > 0 {
				dueC = time.After(d)
			}

		case <-dueC:
			dueC = nil
			if d := w.mayGoOn(); d > 0 {
				dueC = time.After(d)
				continue
			}
			w.killNow(fmt.Sprintf("its time to drain was over: %s", w.holding()))

		case reason := <-w.kill:
			w.killNow(reason)

		case reason := <-w.hang:
			if st := w.snapshot().State; st != Ready && st != Starting && (st != Draining || w.isTold()) {
				continue
			}
			w.to(Killing, reason)
			_ = w.proc.Signal(syscall.SIGABRT) // for its stacks; one that is stopped, or deaf, gets KILL
			abortC = time.After(abortGrace)

		case <-abortC:
			_ = w.proc.SignalGroup(syscall.SIGKILL)
		}
	}
}

func (w *worker) isTold() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.info.Told
}

// took tells, not more often than now and then, whether the worker has accepted a connection. A process that handles one
// connection at a time and shares its queue with others is never seen to wait while they are many.
func (w *worker) took() bool {
	if time.Since(w.tookAsked) < tookEvery {
		return false
	}
	w.tookAsked = time.Now()
	return w.pool.cfg.Prober.Took(w.proc.PID(), w.inodes)
}

func (w *worker) becomeReady(how string) {
	w.mu.Lock()
	if w.info.Adapter == "" && w.info.NoAdapter == "" {
		w.info.NoAdapter = w.given.silence()
	}
	w.mu.Unlock()
	w.pool.cfg.Keeper.Sync() // whoever follows a killed master must know of every worker that clients have met
	if err := w.pool.cfg.Gate.Admit(w.snapshot()); err != nil {
		w.fail(fmt.Errorf("give it new connections: %w", err))
		return
	}
	w.wasUp = true
	w.to(Ready, how)
	w.pool.hasReady()
	w.pool.cfg.Keeper.Sync() // it does not say twice that it is ready, and what it takes
	close(w.ready)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
