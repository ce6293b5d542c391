package lifecycle

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"gapless/internal/adapter"
	"gapless/internal/control"
	"gapless/internal/notify"
	"gapless/internal/packet"
	"gapless/internal/pidfd"
	"gapless/internal/procfs"

	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"
)

// The parent's patience.
const (
	// overdueMaster is how long a master may live on after its successor has announced itself.
	overdueMaster = 5 * time.Second
	// undecidedMaster is how long a starting master may take to say what it does about its predecessor's death.
	undecidedMaster = 10 * time.Second
	// endedMaster is how long a master may take to end everything at once before the parent does it.
	endedMaster = 5 * time.Second
)

// ParentConfig is what the parent needs to know; the masters read the rest by themselves.
type ParentConfig struct {
	Binary       string   // of the masters: the path by which gapless was started, so that a new binary there is taken
	Args         []string // of the masters, after the binary
	DrainTimeout time.Duration
	PIDFile      string
	Version      string
	Control      string        // path of the control socket; "": the default one for Listener
	Listener     string        // the first address
	Health       string        // where /livez and /readyz are answered; "": nowhere
	LameDuck     time.Duration // how long it serves on, not ready any more, before a stop drains
}

// process is a master, as the parent knows it.
type process struct {
	*pidfd.Process
	generation int
	announced  bool     // it has said MAINPID: it takes charge when the one before has been reaped
	removals   []string // from the store, which it asked for then
	overdue    *time.Timer
	heir       bool         // it was started in place of a dead one
	word       word         // what it has said of itself
	exe        *os.File     // its binary, from when it takes charge
	charged    time.Time    // when it took charge
	status     pidfd.Status // of a fallen one
}

type ended struct {
	master *process
	status pidfd.Status
}

// parent is the process that the user started: its PID never changes.
type parent struct {
	cfg ParentConfig
	log *zap.Logger

	sock     *notify.Socket
	socket   *control.Listener
	link     *packet.Conn
	linkEnd  *os.File // the masters' end, so that the link survives them
	signals  chan os.Signal
	notes    chan notify.Message
	acks     chan uint64
	commands chan linkMessage // from the control socket
	ctl      *controller
	health   *health
	ends     chan ended
	timeout  chan *process // a master that is overdue
	over     chan struct{} // closed when govern has ended and nobody listens any more
	reaped   reaped

	cleaned chan struct{} // what a failed master has left is gone

	// The rest belongs to the goroutine of govern.
	up       *upstream
	store    *store
	deaths   int              // of masters in charge, in a row
	killed   bool             // everything was
	restartC <-chan time.Time // when the dead one's place is taken
	cleaning int
	leftBy   []*process // masters that never were in charge, and whose remains are to be ended when all has been heard
	fallen   *process   // had announced itself, and died before its predecessor's end was seen
	current  *process
	masters  map[int]*process // all that live, by PID
	orphaned *process         // the dead master in charge, until it is decided who follows
	seq      atomic.Uint64
	orders   orders
	stalled  bool                    // the link is full
	retryC   <-chan time.Time        // when it is looked at again
	again    map[syscall.Signal]bool // to be sent once more after the acknowledgement of the one before
	stopping int                     // how often it was told to stop
	inCharge bool                    // a master has been in charge
	kill     <-chan time.Time
	duckC    <-chan time.Time // when the lame-duck time is over
	status   int
	fatal    error // why the parent gives up as soon as the master is there
}

// RunParent runs the parent and returns the exit status for the process, and an error for people, if there is one that
// no master has printed.
func RunParent(cfg ParentConfig, log *zap.Logger) (int, error) {
	p := &parent{cfg: cfg, log: log, signals: make(chan os.Signal, 64), notes: make(chan notify.Message),
		acks: make(chan uint64), commands: make(chan linkMessage), ends: make(chan ended), timeout: make(chan *process), cleaned: make(chan struct{}), store: newStore(), over: make(chan struct{}), masters: make(map[int]*process), again: make(map[syscall.Signal]bool)}
	// First of all: before this line a USR2 would kill.
	signal.Notify(p.signals, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT,
		syscall.SIGQUIT, syscall.SIGTTIN, syscall.SIGTTOU)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // a closed terminal or pipe is no reason to end
	beSmall()
	activated := takeActivated()
	defer packet.CloseAll(activated)
	p.up = newUpstream(os.Getenv, cfg.Version, log)
	for _, f := range activated {
		if fd, err := packet.Descriptor(f); err == nil {
			p.up.vault.found(f.Name(), fd)
		}
	}
	p.store.dropped = func(name string) {
		if lane, ok := strings.CutPrefix(name, lanePrefix); ok {
			p.up.vault.drop(lane)
		}
	}
	pidFile, err := lockPIDFile(cfg.PIDFile)
	if err != nil {
		return 1, err
	}
	defer pidFile.remove()
	defer func() { _ = adapter.RemoveFolders(os.Getpid(), os.Getenv) }() // what the masters have written for workers
	if err := becomeSubreaper(); err != nil {
		return 1, err
	}
	if p.sock, err = notify.Listen(); err != nil {
		return 1, err
	}
	defer p.sock.Close()
	p.ctl = newController(p, cfg.Version, log)
	p.fatal = p.openControl() // acted on when the master has its addresses: a port in use is the better answer
	if p.socket != nil {
		defer p.socket.Close()
	}
	if p.health, err = openHealth(cfg.Health, p.ctl.healthy, log); err != nil {
		return 1, err
	}
	if err := p.startMaster(activated); err != nil {
		p.health.close()
		return 1, err
	}
	defer p.link.Close()
	defer p.linkEnd.Close()

	g := NewGroup(log)
	if p.socket != nil {
		g.Add("control", func(ctx context.Context) error { return control.Serve(ctx, p.socket, p.ctl, log) })
	}
	if p.health.listener != nil {
		g.Add("health", p.health.run)
	}
	g.Add("reaper", p.reap)
	g.Add("notify", p.hearNotes)
	g.Add("link", p.hearLink)
	if span, err := daemon.SdWatchdogEnabled(false); err != nil {
		log.Warn("The service manager's watchdog is not understood", zap.Error(err))
	} else if span > 0 && p.up.address != "" {
		g.Add("watchdog", watchdog{span: span, healthy: p.ctl.healthy, beat: p.up.beat}.run)
	}
	g.Add("parent", p.govern)
	err = g.Run()
	if p.fatal != nil && !p.inCharge {
		return 1, errors.Join(p.fatal, err)
	}
	return p.status, err
}

// openControl opens the control socket.
func (p *parent) openControl() (err error) {
	path := p.cfg.Control
	if path == "" {
		path = control.DefaultPath(control.Folders(os.Geteuid(), os.Getenv)[0], p.cfg.Listener, os.Getpid())
	}
	p.socket, err = control.Listen(path)
	return err
}

// startMaster starts the first master. It gets the sockets that came from above.
func (p *parent) startMaster(activated []*os.File) error {
	mine, theirs, err := packet.Pair()
	if err != nil {
		return err
	}
	p.linkEnd = theirs
	if p.link, err = packet.New(mine); err != nil {
		return err
	}
	proc, err := p.spawnActivated(activated)
	if err != nil {
		return err
	}
	packet.CloseAll(activated)
	p.current = p.adopt(proc, 1)
	p.holdBinary(p.current)
	return nil
}

// adopt watches a master.
func (p *parent) adopt(proc *pidfd.Process, generation int) *process {
	m := &process{Process: proc, generation: generation}
	p.masters[proc.PID()] = m
	go func() { // ends with the process, or with govern
		status := proc.Status()
		if known, ok := p.reaped.status(proc.PID()); ok && !status.Known {
			status = known
		}
		select {
		case p.ends <- ended{m, status}:
		case <-p.over:
		}
	}()
	return m
}

// hearNotes takes in what the masters say.
func (p *parent) hearNotes(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { _ = p.sock.SetReadDeadline(time.Unix(1, 0)) })()
	for {
		m, err := p.sock.ReceiveFDs()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, notify.ErrForeign):
			continue
		case err != nil:
			return err
		}
		select {
		case p.notes <- m:
		case <-ctx.Done():
			notify.CloseFDs(m.FDs)
			return ctx.Err()
		}
	}
}

// hearLink takes in what the masters answer and tell.
func (p *parent) hearLink(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { _ = p.link.SetReadDeadline(time.Unix(1, 0)) })()
	for {
		var m linkMessage
		files, err := p.link.Receive(&m)
		if lost(err) { // who waits for what it was asks again, or is answered by the next master
			p.log.Warn("What the master says is not understood", zap.Error(err))
			continue
		}
		if err != nil { // only of ctx: there is no end of the link while we hold both
			<-ctx.Done()
			return ctx.Err()
		}
		p.ctl.hear(m, files)
		packet.CloseAll(files)
		if !m.Ack {
			continue
		}
		select {
		case p.acks <- m.Seq:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// govern is the parent's one loop. It returns when nothing is left to be a parent of.
func (p *parent) govern(ctx context.Context) error {
	defer close(p.over)
	for {
		p.ctl.vacancy.set(p.current == nil)
		p.forward()
		select {
		case sig := <-p.signals:
			p.signal(sig.(syscall.Signal))
		case m := <-p.notes:
			if p.note(m) {
				return p.end(ctx)
			}
		case m := <-p.commands:
			p.pass(m)
		case seq := <-p.acks:
			p.acked(seq)
		case e := <-p.ends:
			if p.ended(e) {
				return p.end(ctx)
			}
		case m := <-p.timeout:
			p.overdue(m)
		case <-p.cleaned:
			if p.cleaning--; p.orphaned != nil && p.decide() {
				return p.end(ctx)
			}
		case <-p.restartC:
			if p.startAgain() {
				return p.end(ctx)
			}
		case <-p.duckC:
			p.ducked()
		case <-p.retryC: // to forward
		case <-p.kill:
			p.kill, p.killed = nil, true
			p.log.Error("Master does not end; the parent ends everything")
			_, _ = procfs.SignalDescendants(os.Getpid(), syscall.SIGKILL)
			if p.current == nil && len(p.masters) == 0 {
				return p.end(ctx)
			}
		}
	}
}

// signal passes a signal to whoever is in charge.
func (p *parent) signal(sig syscall.Signal) {
	switch sig {
	case syscall.SIGTERM, syscall.SIGINT:
		if p.stopping++; p.stopping > 1 {
			sig = syscall.SIGQUIT
		}
	case syscall.SIGQUIT:
		p.stopping++
	}
	if p.stopping > 0 {
		p.up.stop()
		p.health.leaving.Store(true)
	}
	switch {
	case sig == syscall.SIGQUIT:
		p.duckC = nil
	case p.stopping == 1 && (sig == syscall.SIGTERM || sig == syscall.SIGINT) && p.duck():
		return
	}
	if p.stopping > 0 && p.restartC != nil {
		p.restartC = time.After(0) // whoever wants it to end does not wait for a pause
	}
	if sig == syscall.SIGQUIT && p.kill == nil {
		p.kill = time.After(endedMaster)
	}
	if sig == syscall.SIGUSR2 || sig == syscall.SIGHUP {
		// Of those that nobody has acted on yet one is enough; but it may have been acted on just now, and its
		// acknowledgement be on the way: so another one follows that.
		if p.orders.has(sig) {
			p.again[sig] = true
			return
		}
	}
	p.pass(linkMessage{Seq: p.nextSeq(), Signal: sig})
}

// acked forgets a signal or a command that a master has acted on.
func (p *parent) acked(seq uint64) {
	if m, ok := p.orders.acked(seq); ok && p.again[m.Signal] {
		delete(p.again, m.Signal)
		p.signal(m.Signal)
	}
}

// nextSeq numbers signals and commands.
func (p *parent) nextSeq() uint64 { return p.seq.Add(1) }

// masterEnviron is the environment of the masters. Without a manager's name of its own in it: a gapless under another
// gapless must not take the outer one's link.
func masterEnviron(environ []string, notifyAddress string, linkFD int) []string {
	drop := map[string]bool{linkVariable: true, keptVariable: true, "TABLEFLIP_HAS_PARENT_7DIU3": true, roleVariable: true, parentVariable: true}
	for _, name := range managerVariables {
		drop[name] = true
	}
	var env []string
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		if !drop[name] {
			env = append(env, kv)
		}
	}
	return append(env, "NOTIFY_SOCKET="+notifyAddress, linkVariable+"="+strconv.Itoa(linkFD), roleVariable+"="+roleMaster,
		parentVariable+"="+strconv.Itoa(os.Getpid()))
}
