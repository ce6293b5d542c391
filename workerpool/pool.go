package workerpool

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"time"

	"gapless/internal/channel"
	"gapless/internal/notify"

	"go.uber.org/zap"
)

var (
	never   = time.Time{}
	longAgo = time.Unix(1, 0)
)

// DefaultStartTimeout and DefaultDrainTimeout are those of the command line.
const (
	DefaultStartTimeout = 60 * time.Second
	DefaultDrainTimeout = 30 * time.Second
)

// Config says what a Pool runs and how. Log, Observe and Owns may be nil.
type Config struct {
	Generation int
	Spawner    Spawner
	Prober     Prober
	Asker      Asker // for ReadyHTTP
	Gate       Gate
	// Launch is that of the Recipe for the first workers of all slots.
	Launch func(slot int, sockets []Socket) (Launch, error)

	Readiness    Readiness
	StartTimeout time.Duration // from a worker's start until it must be ready; 0: no limit
	StopSignal   syscall.Signal
	// Out and Err take what comes from workers through pipes; nil: it goes where this process writes, and waits for it.
	Out, Err *Lines
	// Prefix has every worker print through pipes, and puts the worker's name before each of its lines.
	Prefix   bool
	Watchdog time.Duration // told to the workers as WATCHDOG_USEC; 0: none

	// Listen opens a worker's notify socket; nil: notify.Listen does.
	Listen func() (*notify.Socket, error)
	// Keeper keeps what another process needs to take the workers over if this one is killed; nil: nobody does.
	Keeper Keeper

	Log *zap.Logger
	// Observe is told of every change of state, under no lock, in the order of the changes of each worker. It must
	// not block.
	Observe func(Event)
	// Owns tells whether a process that wrote to a worker's notify socket belongs to that worker; nil: only the
	// worker itself does.
	Owns func(worker, sender int) bool
	// Random returns numbers from [0,1) for jitter; nil: math/rand.
	Random func() float64
}

// Event is a change of a worker's state.
type Event struct {
	Info
	From State
	Took time.Duration // how long it had been in From
}

// Pool is the set of workers that one master is responsible for.
type Pool struct {
	cfg Config
	log *zap.Logger

	mu      sync.Mutex
	slots   []*slot
	recipe  Recipe // of new slots
	workers map[*worker]struct{}
	stopped bool          // nothing is started any more
	frozen  bool          // nothing is started for now
	thawed  chan struct{} // closed while not frozen
	empty   chan struct{} // closed and made anew whenever the last worker has gone
	readied chan struct{} // closed and made anew whenever a worker becomes ready; nil while nobody waits for it
	stopC   chan struct{} // closed when stopped is set
	dropped [2]int        // lines, by stream, that could not be written before a freeze; of whoever freezes

	// spawning is held for reading around a start, so that freezing can wait for starts under way.
	spawning sync.RWMutex
	wg       sync.WaitGroup
}

// New returns an empty Pool.
func New(cfg Config) *Pool {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Keeper == nil {
		cfg.Keeper = noKeeper{}
	}
	if cfg.Listen == nil {
		cfg.Listen = notify.Listen
	}
	if cfg.Owns == nil {
		cfg.Owns = func(worker, sender int) bool { return worker == sender }
	}
	if cfg.Random == nil {
		cfg.Random = rand.Float64
	}
	if cfg.StopSignal == 0 {
		cfg.StopSignal = syscall.SIGTERM
	}
	thawed := make(chan struct{})
	close(thawed)
	return &Pool{cfg: cfg, log: cfg.Log, recipe: Recipe{Revision: 1, Launch: cfg.Launch},
		workers: make(map[*worker]struct{}), thawed: thawed, stopC: make(chan struct{})}
}

func (p *Pool) observe(e Event) {
	if p.cfg.Observe != nil {
		p.cfg.Observe(e)
	}
}

// StartHelper starts a process that serves no lane and is never restarted, such as a relay. It counts as ready at once,
// and drains with the workers.
func (p *Pool) StartHelper(role string, l Launch) error {
	p.spawning.RLock()
	defer p.spawning.RUnlock()
	p.mu.Lock()
	refused := p.frozen || p.stopped
	p.mu.Unlock()
	if refused {
		return ErrFrozen
	}
	proc, err := p.cfg.Spawner.Spawn(l)
	if err != nil {
		return err
	}
	now := time.Now()
	info := Info{ID: ID{Slot: -1, Generation: p.cfg.Generation, PID: proc.PID()}, Role: role, State: Ready, Started: now, Since: now}
	w := newWorker(p, info, proc)
	w.wasUp = true
	p.keep(w)
	p.observe(Event{Info: info, From: Starting})
	p.run(w)
	p.cfg.Keeper.Changed()
	return nil
}

// run gives a worker its goroutines. One that comes after the pool was ended is ended, too.
func (p *Pool) run(w *worker) {
	p.mu.Lock()
	p.workers[w] = struct{}{}
	ended := p.stopped
	p.mu.Unlock()
	w.startReaders()
	p.wg.Go(w.run)
	if ended {
		w.end("the pool has ended")
	}
}

// launch starts a process with all that belongs to it.
func (p *Pool) launch(slot int, r Recipe) (w *worker, err error) {
	sockets, err := p.cfg.Gate.Sockets(slot)
	if err != nil {
		return nil, err
	}
	info := Info{ID: ID{Slot: slot, Generation: p.cfg.Generation}, Revision: r.Revision, State: Starting}
	inodes := make(map[uint64]bool, len(sockets))
	for _, s := range sockets {
		info.Lanes = append(info.Lanes, s.Lane)
		info.Inodes = append(info.Inodes, s.Inode)
		inodes[s.Inode] = true
	}
	var cleanup []func()
	defer func() {
		if err != nil {
			for _, f := range cleanup {
				f()
			}
			p.cfg.Gate.Release(info, Starting)
		}
	}()
	l, err := r.Launch(slot, sockets)
	if err != nil {
		return nil, err
	}
	l.Sockets, l.Watchdog = sockets, p.cfg.Watchdog

	ns, err := p.cfg.Listen()
	if err == nil {
		cleanup = append(cleanup, func() { ns.Close() })
		l.Env = append(l.Env, "NOTIFY_SOCKET="+ns.Address())
	} else if p.cfg.Readiness.Mode == ReadyNotify {
		return nil, err
	}
	mine, theirs, err := channel.Pair()
	if err != nil {
		return nil, fmt.Errorf("worker's channel: %w", err)
	}
	defer theirs.Close()
	ch, err := channel.New(mine)
	if err != nil {
		return nil, err
	}
	cleanup = append(cleanup, func() { ch.Close() })
	l.Extra = append(l.Extra, Extra{"GAPLESS_CHANNEL", theirs})

	var heard func(line []byte) // set once the worker is there; nothing is read before
	var out *output
	if p.cfg.Readiness.Mode == ReadyLog || p.cfg.Prefix {
		var stdout, stderr *os.File
		out, stdout, stderr, err = newOutput(func(line []byte) { heard(line) })
		if err != nil {
			return nil, err
		}
		cleanup = append(cleanup, out.close)
		defer stdout.Close()
		defer stderr.Close()
		l.Stdout, l.Stderr = stdout, stderr
		p.route(out, info)
	}
	proc, err := p.cfg.Spawner.Spawn(l)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	info.PID, info.Started, info.Since = proc.PID(), now, now
	w = newWorker(p, info, proc)
	w.ch, w.notify, w.out, w.inodes = ch, ns, out, inodes
	w.given.Adapter, w.given.command = l.Adapter, l.Args
	heard = w.lineMatcher()
	p.keep(w)
	return w, nil
}

// stop ends all starting and restarting.
func (p *Pool) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.stopped {
		p.stopped = true
		close(p.stopC)
	}
}

// all returns the workers that match.
func (p *Pool) all(match func(Info) bool) []*worker {
	p.mu.Lock()
	defer p.mu.Unlock()
	var ws []*worker
	for w := range p.workers {
		if match == nil || match(w.snapshot()) {
			ws = append(ws, w)
		}
	}
	return ws
}

// DrainOthers orders the workers of other generations, the adopted ones, to drain.
func (p *Pool) DrainOthers(o Order) {
	for _, w := range p.all(func(i Info) bool { return i.Generation != p.cfg.Generation }) {
		if !w.isTold() {
			w.order(o)
		}
	}
}

// DrainAll stops the pool: nothing is started any more and all workers drain. Empty tells when they are gone.
func (p *Pool) DrainAll(o Order) {
	p.stop()
	for _, w := range p.all(nil) {
		w.order(o)
	}
}

// Kill stops the pool and ends all its workers at once.
func (p *Pool) Kill(reason string) {
	p.stop()
	for _, w := range p.all(nil) {
		w.end(reason)
	}
}

// Abort ends a worker that hangs: with ABRT first, so that it can dump its stacks, then with KILL. It is replaced like any
// that dies.
func (p *Pool) Abort(pid int, reason string) {
	for _, w := range p.all(func(i Info) bool { return i.PID == pid }) {
		select {
		case w.hang <- reason:
		default:
		}
	}
}

// SignalAll sends sig to the workers for which wants returns true (nil: to all).
func (p *Pool) SignalAll(sig syscall.Signal, wants func(pid int) bool) {
	for _, w := range p.all(nil) {
		if wants == nil || wants(w.proc.PID()) {
			_ = w.proc.Signal(sig) // one that has just ended needs none
		}
	}
}

// Empty is closed when no worker is left.
func (p *Pool) Empty() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.workers) == 0 {
		c := make(chan struct{})
		close(c)
		return c
	}
	if p.empty == nil {
		p.empty = make(chan struct{})
	}
	return p.empty
}

// Wait returns when all goroutines of a stopped pool have ended.
func (p *Pool) Wait() { p.wg.Wait() }

// Workers returns what is known of every worker, in no order.
func (p *Pool) Workers() []Info {
	var infos []Info
	for _, w := range p.all(nil) {
		infos = append(infos, w.snapshot())
	}
	return infos
}

// route has what a worker prints go where it should.
func (p *Pool) route(o *output, i Info) {
	if p.cfg.Out == nil {
		return
	}
	for n, l := range []*Lines{p.cfg.Out, p.cfg.Err} {
		o.streams[n].dst = l
		if p.cfg.Prefix {
			o.streams[n].lines = l
		}
	}
	o.prefix = prefix(i)
}

// prefix is what stands before each of a worker's lines.
func prefix(i Info) string { return fmt.Sprintf("[worker %d generation %d] ", i.Slot, i.Generation) }
