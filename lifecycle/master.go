package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gapless/internal/packet"
	"gapless/upgrade"
	"gapless/workerpool"

	"github.com/cloudflare/tableflip"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Errors with which a master ends.
var (
	errStopped    = fmt.Errorf("stopped: %w", errDone)
	errHandedOver = fmt.Errorf("handed over: %w", errDone)
)

// master owns one generation of workers, and, while it is in charge, the lanes and what drains of earlier generations.
type master struct {
	cfg        Config
	events     *zap.Logger // for what names a generation itself
	log        *zap.Logger // for what this master does
	generation int
	began      time.Time
	state      stateBox

	left    *heritage // of a dead master whose place this one takes; nil: it does not
	keep    *keeper
	account account
	changes chan struct{}    // has room for one: a worker has changed, and what waits for that may go on
	files   upgrade.Handover // flip, whose lanes the parent keeps as well

	machinery
	flip    upgrade.Handover
	pred    predecessor // nil in the first master
	link    *masterLink
	inv     *upgrade.Inventory // nil before this master is in charge
	gate    *gate
	pool    *workerpool.Pool
	pooled  atomic.Bool              // pool and inv are set, which who asks for the status during the start cannot know otherwise
	pinned  atomic.Pointer[launcher] // how workers are started
	queues  queues
	watch   laneWatch
	tickets *tickets
	strays  *strays
	preview preview
	limits  limits
	hint    sync.Once
	untold  untold // what there is to say about adapters
	herald  *herald

	lines   []*workerpool.Lines   // of --log-prefix
	facts   atomic.Pointer[facts] // of this generation, as it is now
	tally   atomic.Pointer[tally] // of the reload or the scaling under way; nil: there is none, or it has not come so far
	aimed   atomic.Int64          // how many workers there are or are to be, as far as their starts need to know
	counted sync.Once             // the CPUs, for crowded
	cpus    int

	// The rest belongs to the goroutine of govern.
	reread      func() (Config, error)
	next        int           // the number of the next generation
	revision    int           // of this one; raised by each reload
	wanted      int           // how many workers there are to be; written by want alone
	configured  int           // how many the configuration says
	started     int           // how many there were at first
	more        int           // how many more were asked for by signals before they were ready; negative: fewer
	after       []afterRecord // what is to run when older generations are gone
	afterFailed string        // what became of the last that did not end well; "": it did
	older       []facts       // of generations that may still have workers
	op          *operation
	opDone      <-chan error
	wishes      wishes
	stop        *linkMessage // the order to stop
	bereft      bool         // the parent has gone
	patient     bool         // an address may be freed in a moment
	refusal     *time.Ticker // runs while stopping, until new clients are refused

	stage     atomic.Pointer[stage] // beside this one's; nil: none
	own       *generationBox        // of this generation, as it stands beside a staged one
	presented atomic.Bool           // this master, not in charge yet, has told the one in charge what it has

	lent struct { // lanes of the generation that is starting
		sync.Mutex
		names []string
	}
}

// ErrReported says that a generation has failed and the master in charge knows why: there is nothing to print.
var ErrReported = errors.New("reported to the master in charge")

// RunMaster runs the master in this process, which the parent or the master before started. It returns the error for
// people, nil if there is none to show. reread reads the configuration anew, for a reload.
func RunMaster(cfg Config, reread func() (Config, error), log *zap.Logger) error {
	return runMaster(cfg, nil, reread, log)
}

func runMaster(cfg Config, left *heritage, reread func() (Config, error), log *zap.Logger) error {
	real, prober := realMachinery()
	defer prober.Close()
	m := newMaster(cfg, left, reread, real, log)
	err := m.isolate()
	if err == nil {
		err = m.join()
	}
	if err != nil {
		return err
	}
	if err := m.equip(); err != nil {
		return err
	}
	g := NewGroup(m.log)
	charge := make(chan struct{}) // closed when this master may read the link
	g.Add("link", func(ctx context.Context) error {
		select {
		case <-charge:
		case <-ctx.Done():
			return ctx.Err()
		}
		return m.link.run(ctx)
	})
	g.Add("keeper", m.keep.run)
	g.Add("queues", m.queues.run)
	g.Add("strays", m.strays.run)
	g.Add("tickets", m.tickets.run)
	g.Add("limits", m.keepLimits)
	g.Add("master", func(ctx context.Context) error { return m.live(ctx, charge) })
	err = g.Run()
	m.close()
	return err
}

func newMaster(cfg Config, left *heritage, reread func() (Config, error), on machinery, log *zap.Logger) *master {
	m := &master{cfg: cfg, changes: make(chan struct{}, 1), left: left, reread: reread, machinery: on, revision: 1, configured: cfg.Workers,
		events: log, log: log, began: time.Now(), herald: newHerald()}
	m.want(cfg.Workers)
	m.limits.since = m.began
	m.own = newGenerationBox(0, GenerationActive) // looked at while this master is in charge
	m.state.observe = func(from, to State) {
		m.log.Debug("master", zap.Stringer("from", from), zap.Stringer("state", to))
		m.herald.kick()
	}
	return m
}

// equip gives a master that has joined what its actors work with.
func (m *master) equip() (err error) {
	m.keep = newKeeper(m.log)
	m.files = keptFiles{m.flip, m.keep}
	m.queues.work = make(chan struct{}, 1)
	m.queues.forget = func(generation int) { m.keep.remove(queueEntry(generation)) }
	m.strays = newStrays(m)
	m.watch.watch = m.watchLanes
	m.tickets, err = openTickets(m.files, m.left, m.log)
	return err
}

// close follows the end of all actors.
func (m *master) close() {
	m.watch.stop()
	for _, l := range m.lines {
		l.Close()
	}
	if m.pred != nil {
		m.pred.Close()
	}
}

// ReportFailure tells the master in charge, if this process was started to follow it, why it cannot: for failures before
// RunMaster, which then is not called. It returns whether somebody was told.
func ReportFailure(err error) bool {
	if err == nil || !IsMaster() {
		return false
	}
	flip, flipErr := tableflip.New(tableflip.Options{})
	if flipErr != nil {
		return false
	}
	pred, joinErr := upgrade.Join(flip)
	if joinErr != nil || pred == nil {
		return false
	}
	defer pred.Close()
	pred.Progress(upgrade.Progress{Phase: upgrade.PhasePrepare, PID: os.Getpid()})
	pred.Fail(err.Error(), nil)
	return true
}

// isolate makes this process a master: a session of its own, no signal but the parent's word, nothing that a worker
// could inherit by accident.
func (m *master) isolate() error {
	if _, err := unix.Setsid(); err != nil && !errors.Is(err, unix.EPERM) { // EPERM: it leads one already
		return fmt.Errorf("start a session: %w", err)
	}
	// tableflip leaves its two pipes open over an exec.
	for _, fd := range []int{3, 4} {
		unix.CloseOnExec(fd)
	}
	// Signals go to the parent, which knows who is in charge. Ignoring them would be inherited by the workers.
	strays := make(chan os.Signal, 16)
	signal.Notify(strays, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2,
		syscall.SIGPIPE, syscall.SIGTTIN, syscall.SIGTTOU)
	return nil
}

// join finds out whether this is the first master or follows another one.
func (m *master) join() error {
	flip, err := tableflip.New(tableflip.Options{UpgradeTimeout: math.MaxInt64}) // our deadlines end a generation as a whole
	if err != nil {
		return fmt.Errorf("tableflip: %w", err)
	}
	m.flip = flip
	pred, err := upgrade.Join(flip)
	if err != nil {
		return err
	}
	if pred != nil {
		m.pred = pred
	}
	m.generation, m.next = 1, 2
	if m.left != nil {
		m.generation, m.next = m.left.Generation, m.left.Next
	}
	var f *os.File
	if m.pred != nil {
		m.generation = m.pred.Offer().Generation
		m.next = m.generation + 1
		f, err = flip.File(linkFile)
	} else {
		var n int
		if n, err = strconv.Atoi(os.Getenv(linkVariable)); err == nil {
			f = os.NewFile(uintptr(n), linkFile)
			unix.CloseOnExec(n)
		}
	}
	if err != nil || f == nil {
		return errors.New("a master is started by gapless run and not by hand")
	}
	m.log = m.log.With(fGeneration(m.generation))
	m.own.number = m.generation
	if m.pred == nil {
		if err := flip.AddFile(linkFile, f); err != nil {
			return fmt.Errorf("keep the link: %w", err)
		}
	}
	conn, err := packet.New(f)
	if err != nil {
		return err
	}
	m.link = newMasterLink(conn)
	if m.pred != nil {
		m.pred.Progress(upgrade.Progress{Phase: upgrade.PhasePrepare, PID: os.Getpid()})
		return m.introduce()
	}
	return nil
}

// introduce tells the parent of this master before it starts anything.
func (m *master) introduce() error {
	return tellParent(generationField + "=" + strconv.Itoa(m.generation))
}

// live is the master's life: start, take charge, govern.
func (m *master) live(ctx context.Context, charge chan struct{}) error {
	if m.left != nil {
		return m.resumed(ctx, charge)
	}
	start, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan error, 1)
	go func() { done <- m.start(start) }()
	var aborted <-chan struct{}
	if m.pred == nil {
		close(charge)
	} else {
		aborted = m.pred.Aborted()
	}
	var stopped bool
	for {
		if m.pred == nil {
			m.announce()
		}
		select {
		case <-m.herald.changed:
		case <-tickOf(m.herald.patience):
			_ = m.herald.tell(extension())
		case err := <-done:
			if err == nil && stopped {
				err = errStopped // it came when nothing was left to cancel
			}
			if err == nil && m.pred != nil {
				err = m.takeCharge(start, charge)
			}
			if err != nil {
				return m.giveUp(err, stopped)
			}
			return m.govern(ctx)
		case <-aborted:
			aborted = nil
			cancel(m.pred.Reason())
		case msg := <-m.link.signals: // in the first master only
			if msg.Command != nil {
				m.command(start, msg) // the status; all else is refused until the workers are ready
				continue
			}
			switch msg.Signal {
			case syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT:
				m.link.ack(msg)
				stopped = true
				cancel(errStopped)
			case syscall.SIGUSR2:
				m.log.Info("Upgrade follows when the workers are ready")
				m.wishes.upgrade = append(m.wishes.upgrade, msg)
			case syscall.SIGTTIN, syscall.SIGTTOU:
				// Counted, and acted on when the workers are ready: one of a pair must not be lost with the other kept.
				m.link.ack(msg)
				m.more++
				if msg.Signal == syscall.SIGTTOU {
					m.more -= 2
				}
			default:
				m.link.ack(msg)
				m.log.Warn("Signal ignored: the workers are not ready yet", zap.Stringer("signal", msg.Signal))
			}
		case <-m.link.gone:
			m.bereft = true
			cancel(errors.New("the parent has gone"))
		}
	}
}

// giveUp ends a generation that never took charge.
func (m *master) giveUp(err error, stopped bool) error {
	_ = m.state.to(Over)
	if m.pred != nil && m.pred.Spared() {
		m.pred.Fail(err.Error(), tailOf(err))
		m.leave()
		return ErrReported
	}
	if m.pool != nil {
		m.pool.Kill("its generation was given up")
		m.pool.Wait()
	}
	if stopped {
		return errStopped
	}
	if m.pred == nil {
		if m.inv != nil {
			err = errors.Join(err, m.unlink())
		}
		return err
	}
	m.pred.Fail(err.Error(), tailOf(err))
	return ErrReported
}

// unlink removes the socket files, unless the service manager keeps the sockets for the next start.
func (m *master) unlink() error {
	if m.leaves() {
		return nil
	}
	return m.inv.Unlink()
}

// leaves tells whether the lanes are to be left as they are, with all who wait at them: the parent was killed, and the
// service manager keeps them for the next one.
func (m *master) leaves() bool { return m.bereft && os.Getenv(keptVariable) != "" }

func tailOf(err error) []string {
	var start *workerpool.StartError
	if errors.As(err, &start) {
		return start.Tail
	}
	return nil
}
