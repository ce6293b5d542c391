package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gapless/internal/notify"
	"gapless/internal/packet"
	"gapless/internal/pidfd"
	"gapless/internal/procfs"
	"gapless/upgrade"
	"gapless/workerpool"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// ground is what the chains of a test have in common and what lies outside their bubbles: a parent that hears all and says
// nothing. Whoever waits for a socket would stop a bubble's clock.
type ground struct {
	link *os.File // the masters' end
}

func newGround(t *testing.T) *ground {
	t.Helper()
	sock, err := notify.Listen()
	if err != nil {
		t.Fatal(err)
	}
	mine, theirs, err := packet.Pair()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := packet.New(mine)
	if err != nil {
		t.Fatal(err)
	}
	var hearing sync.WaitGroup
	hearing.Go(func() {
		for {
			m, err := sock.ReceiveFDs()
			if err != nil && !errors.Is(err, notify.ErrForeign) {
				return
			}
			notify.CloseFDs(m.FDs)
		}
	})
	hearing.Go(func() {
		for {
			var m linkMessage
			files, err := conn.Receive(&m)
			packet.CloseAll(files)
			if err != nil {
				return
			}
		}
	})
	t.Cleanup(func() {
		sock.Close()
		theirs.Close()
		hearing.Wait()
		conn.Close()
	})
	t.Setenv("NOTIFY_SOCKET", sock.Address())
	return &ground{theirs}
}

// chain is a sequence of masters in one process, each the successor of the one before, with programs instead of workers.
type chain struct {
	t *testing.T
	*ground
	cfg   Config
	store *fileStore
	first *reign

	mu       sync.Mutex
	programs []*dummy
	journal  []string
	faults   []string
	numbers  map[int]bool // of generations, that were used
	outcome  string       // of the attempts to come
	broken   bool         // what is started now never serves
	stops    bool         // everything is to stop
	death    time.Time    // the last one from outside
	// disturbed says that an operation may have failed.
	disturbed bool
	last      *reign   // in charge, or about to be
	left      []*reign // that have left their workers to the one in charge
	seq       uint64
	wanted    int // workers

	outbox    chan linkMessage
	delivered chan struct{} // closed when nobody delivers any more
}

// dummy is a program in a worker's place.
type dummy struct {
	c          *chain
	pid        int
	generation int
	done       chan struct{}

	// Guarded by the chain's mu.
	status  pidfd.Status
	serving bool
	reaped  bool
	ready   bool // has been
	terms   int
}

func newChain(t *testing.T, g *ground, workers int) *chain {
	t.Helper()
	a, err := upgrade.ParseAddress("http=127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	named, err := upgrade.NameAddresses([]upgrade.Address{a})
	if err != nil {
		t.Fatal(err)
	}
	return &chain{t: t, ground: g, store: &fileStore{files: make(map[string]*os.File)}, numbers: make(map[int]bool),
		outbox: make(chan linkMessage, 1000), delivered: make(chan struct{}),
		cfg: Config{Workers: workers, Addresses: named, Accept: upgrade.ModeSteered, Command: []string{"/proc/self/exe"},
			Readiness: workerpool.Readiness{Mode: workerpool.ReadyAuto}, Settle: 2 * time.Second, StartTimeout: 10 * time.Second,
			DrainTimeout: 30 * time.Second, StopSignal: syscall.SIGTERM, Surge: 1}}
}

// note adds to the journal; mu is held.
func (c *chain) note(format string, args ...any) {
	c.journal = append(c.journal, time.Now().Format("04:05.000 ")+fmt.Sprintf(format, args...))
}

// fault records that something happened that never may; mu is held.
func (c *chain) fault(format string, args ...any) {
	c.faults = append(c.faults, fmt.Sprintf(format, args...))
	c.note("FAULT "+format, args...)
}

func (c *chain) locked(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

// alive returns the programs that run.
func (c *chain) alive() []*dummy {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(c.programs), (*dummy).dead)
}

func (p *dummy) dead() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// exit ends the program; mu is held.
func (p *dummy) exit(s pidfd.Status) {
	if !p.dead() {
		p.status = s
		p.c.note("%d exits: %s", p.pid, s)
		close(p.done)
	}
}

// reign is one master of a chain, and its machinery.
type reign struct {
	c      *chain
	m      *master
	pred   *before // nil in the first
	next   *reign  // that it has handed over to; read after over
	charge chan struct{}
	over   chan struct{} // closed when all its actors have ended, as at the end of a process
	err    error         // of the actors, valid after over
	gone   bool          // the process has ended: what its goroutines still do reaches nobody. Guarded by the chain's mu
}

// newReign makes a master, which runs when run is called.
func (c *chain) newReign(generation int, pred *before) *reign {
	s := &reign{c: c, pred: pred, charge: make(chan struct{}), over: make(chan struct{})}
	on := machinery{spawner: s, prober: s, attempt: s.attempt, exit: s.exit,
		listen: func() (*notify.Socket, error) { return nil, errors.New("no socket that is read in a bubble") }}
	log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{}), zapcore.AddSync(io.Discard), zap.DPanicLevel),
		zap.Hooks(func(e zapcore.Entry) error {
			go c.locked(func() { c.fault("master %d: %s", generation, e.Message) }) // whoever logs may hold the lock
			return nil
		}))
	s.m = newMaster(c.cfg, nil, func() (Config, error) { return c.cfg, nil }, on, log)
	s.m.generation, s.m.next = generation, generation+1
	s.m.flip = flip{c.store}
	if pred != nil {
		s.m.pred = pred
	}
	f, err := packet.Dup(c.link, "link")
	if err == nil {
		var conn *packet.Conn
		if conn, err = packet.New(f); err == nil {
			s.m.link = newMasterLink(conn)
		}
	}
	if err == nil {
		err = s.m.equip()
	}
	if err != nil {
		c.locked(func() { c.fault("generation %d: %v", generation, err) })
	}
	s.m.watch.watch = func(ctx context.Context) { <-ctx.Done() }
	return s
}

// run is the process.
func (s *reign) run() {
	g := NewGroup(zap.NewNop())
	g.Add("keeper", s.m.keep.run)
	g.Add("master", func(ctx context.Context) error { return s.m.live(ctx, s.charge) })
	s.err = g.Run()
	s.m.close()
	s.c.locked(func() { s.c.note("master %d is over: %v", s.m.generation, s.err) })
	close(s.over)
}

// exit is what happens to a process that has handed over.
func (s *reign) exit() {
	s.c.locked(func() { s.gone = true })
	s.m.gate.mu.Lock()
	defer s.m.gate.mu.Unlock()
	s.m.gate.inv = nil
}

// bury ends what is left of a master that is over, when all programs have ended.
func (s *reign) bury() {
	inv := s.m.inv
	if s.m.pool != nil {
		s.m.pool.Kill("the test is over")
		s.m.pool.Wait()
	}
	if inv != nil {
		_ = inv.Close()
	}
	for _, q := range s.m.queues.all() {
		q.close()
	}
	s.m.tickets.f.Close()
	s.m.link.conn.Close()
}

// Spawn starts a program that serves at once, or soon.
func (s *reign) Spawn(l workerpool.Launch) (workerpool.Process, error) {
	frozen := s.m.state.get() == Frozen
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.gone || frozen {
		c.fault("master %d started a worker, and may not (gone: %v)", s.m.generation, s.gone)
	}
	// No such process exists: numbers end at 2^22.
	p := &dummy{c: c, pid: 5_000_000 + len(c.programs), done: make(chan struct{})}
	for _, kv := range l.Env {
		if v, ok := strings.CutPrefix(kv, "GAPLESS_GENERATION="); ok {
			p.generation, _ = strconv.Atoi(v)
		}
	}
	if p.generation != s.m.generation {
		c.fault("master %d started a worker of generation %d", s.m.generation, p.generation)
	}
	c.programs = append(c.programs, p)
	c.note("%d starts in generation %d", p.pid, p.generation)
	switch {
	case c.broken && p.pid%2 == 0:
		time.AfterFunc(time.Second, func() { p.die(pidfd.Status{Known: true, Code: 3}) })
	case c.broken:
	case p.pid%3 == 0:
		time.AfterFunc(300*time.Millisecond, func() { c.locked(func() { p.serving = true }) })
	default:
		p.serving = true
	}
	return &hold{dummy: p, s: s}, nil
}

func (p *dummy) die(status pidfd.Status) { p.c.locked(func() { p.exit(status) }) }

// Attach is how the next master gets hold of a program.
func (s *reign) Attach(pid int, f *os.File) (workerpool.Process, error) {
	f.Close()
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return &hold{dummy: s.c.programs[pid-5_000_000], s: s}, nil
}

// Waiting is what the prober sees.
func (s *reign) Waiting(_ context.Context, pid int, _ map[uint64]bool) (procfs.Evidence, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if p := s.c.programs[pid-5_000_000]; p.serving && !p.dead() {
		p.ready = true
		return procfs.Evidence{PID: pid, How: procfs.Epoll}, nil
	}
	return procfs.Evidence{}, nil
}

// Rest does nothing.
func (s *reign) Rest() error { return nil }

// hold is one master's hold on a program.
type hold struct {
	*dummy
	s *reign
}

// PID is the program's.
func (h *hold) PID() int { return h.pid }

// Done is closed when it has ended.
func (h *hold) Done() <-chan struct{} { return h.done }

// Signal sends to the program; a stop signal is looked at first.
func (h *hold) Signal(sig syscall.Signal) error {
	alone := sig == syscall.SIGTERM && h.alone()
	c := h.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.s.gone || h.dead() {
		return os.ErrProcessDone
	}
	c.note("%d gets %s from master %d", h.pid, sig, h.s.m.generation)
	if sig != syscall.SIGTERM {
		return nil
	}
	if alone && h.ready && !c.stops {
		c.fault("%d got the stop signal while nobody else took connections", h.pid)
	}
	if h.terms++; h.terms > 1 {
		c.fault("%d got %d stop signals", h.pid, h.terms)
	}
	if h.pid%4 > 0 { // the others ignore it
		time.AfterFunc(time.Duration(h.pid%5)*time.Second, func() { h.die(pidfd.Status{Known: true}) })
	}
	return nil
}

// alone tells whether nobody takes new connections beside this program, although nobody has died since it began to drain.
func (h *hold) alone() bool {
	began := time.Time{}
	for _, w := range h.s.m.pool.Workers() {
		if w.PID == h.pid {
			began = w.Since
		} else if w.Generation == h.s.m.generation && w.State == workerpool.Ready {
			return false
		}
	}
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	return h.c.death.Before(began)
}

// SignalGroup reaches the program alone; only KILL does something.
func (h *hold) SignalGroup(sig syscall.Signal) error {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	if h.s.gone || h.dead() {
		return os.ErrProcessDone
	}
	if sig == syscall.SIGKILL {
		h.exit(pidfd.Status{Known: true, Signal: sig})
	}
	return nil
}

// Status is how it ended.
func (h *hold) Status() pidfd.Status {
	<-h.done
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	h.reaped = h.reaped || !h.s.gone
	return h.status
}

// File stands for a duplicate of the pidfd.
func (h *hold) File() (*os.File, error) { return os.Open(os.DevNull) }

// Close does nothing.
func (h *hold) Close() error { return nil }

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
