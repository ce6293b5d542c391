package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"gapless/internal/notify"
	"gapless/internal/packet"
	"gapless/internal/pidfd"
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
