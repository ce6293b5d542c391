package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"gapless/internal/control"
	"gapless/upgrade"
	"gapless/workerpool"

	"go.uber.org/zap"
)

// operation is what changes the set of workers as a whole. A master does one at a time.
type operation struct {
	kind   string // control's: upgrade, reload, scale, after-promote
	cancel context.CancelCauseFunc
	began  time.Time
	target int // the generation that an upgrade is to bring, or that something is to follow
	// workers is the number that a reload has found configured. The operation's goroutine writes it before its end.
	workers int
	// before is the number that a scaling that fails goes back to.
	before int

	mu     sync.Mutex
	answer []uint64 // the commands that wait for its result
	undo   []uint64 // those that wait for its being undone
}

// wishes are what was asked for while an operation was under way, or before the workers were ready.
type wishes struct {
	upgrade []linkMessage // not acknowledged: if the operation is an upgrade that succeeds they are the next master's
	reload  []linkMessage
	command []linkMessage // likewise: to upgrade, while a generation is in its window
	count   []linkMessage // of TTIN and TTOU, likewise: what is under way works with the number before them, and may go back to it
}

// obey acts on a signal or a command that the parent passed on. A signal is acknowledged when it has been acted on; one
// that waits for an upgrade under way is the next master's if that one succeeds.
func (m *master) obey(ctx context.Context, msg linkMessage) {
	if msg.Command != nil {
		m.command(ctx, msg)
		return
	}
	switch msg.Signal {
	case syscall.SIGUSR2:
		m.wish(&m.wishes.upgrade, msg, "Upgrade")
		m.closeWindow()
	case syscall.SIGHUP:
		m.wish(&m.wishes.reload, msg, "Reload")
	case syscall.SIGTTIN, syscall.SIGTTOU:
		switch {
		case m.op == nil:
			m.count(msg)
		case m.op.kind == control.KindUpgrade:
			m.wishes.count = append(m.wishes.count, msg)
			m.log.Info("The number of workers changes when the upgrade has ended, also one that is staged: promote or abort it", zap.Stringer("signal", msg.Signal))
		default:
			m.wish(&m.wishes.count, msg, "The change of the number of workers")
		}
	case syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT:
		if m.state.get() == Stopping && msg.Signal != syscall.SIGQUIT {
			m.link.ack(msg)
			return
		}
		m.stop = &msg
		if m.op != nil {
			m.op.cancel(errors.New("gapless stops")) // the stop follows its end
			return
		}
		m.beginStop()
		return
	case syscall.SIGUSR1:
		m.link.ack(msg)
		m.pool.SignalAll(syscall.SIGUSR1, func(pid int) bool { return catches(pid, syscall.SIGUSR1) })
	default:
		m.link.ack(msg)
		m.log.Warn("Signal ignored", zap.Stringer("signal", msg.Signal))
	}
	m.proceed(ctx)
}

// count acts on TTIN and TTOU.
func (m *master) count(msg linkMessage) {
	m.link.ack(msg)
	by := 1
	if msg.Signal == syscall.SIGTTOU {
		by = -1
	}
	before := m.wanted
	if m.want(before + by); m.wanted == before {
		return
	}
	m.note()
	m.log.Info("Number of workers changed", zap.Int("workers", m.wanted))
	if m.state.get() == Serving && !m.pool.CanScale(m.wanted) {
		m.log.Info("The surplus workers go when one of those that stay is ready", zap.Int("workers", m.wanted))
	}
}

// want sets how many workers there are to be, as near to n as is possible; proceed brings it about.
func (m *master) want(n int) { m.wanted = min(max(n, 1), control.MaxWorkers) }

// wish notes what is asked for.
func (m *master) wish(list *[]linkMessage, msg linkMessage, what string) {
	if m.state.get() == Stopping {
		m.log.Warn(what + " refused: everything drains")
		m.link.ack(msg)
		return
	}
	*list = append(*list, msg)
	if m.op != nil {
		m.log.Info(what+" follows when what is under way has ended", zap.String("under_way", m.op.kind))
	}
}

// proceed begins the next thing that is wished for, if nothing is under way.
func (m *master) proceed(ctx context.Context) {
	if m.op == nil {
		for _, msg := range m.wishes.count {
			m.count(msg)
		}
		m.wishes.count = nil
	}
	switch {
	case m.op != nil || m.state.get() != Serving:
	case m.stop != nil:
		m.beginStop()
	case m.afterDue():
		m.runAfter(ctx)
	case len(m.wishes.upgrade) > 0:
		for _, msg := range m.wishes.upgrade {
			m.link.ack(msg)
		}
		m.wishes.upgrade = nil
		m.upgrade(ctx, nil, nil)
	case len(m.wishes.command) > 0: // its window's generation did not take charge after all
		msg := m.wishes.command[0]
		m.wishes.command = m.wishes.command[1:]
		m.command(ctx, msg)
	case len(m.wishes.reload) > 0:
		for _, msg := range m.wishes.reload {
			m.link.ack(msg)
		}
		m.wishes.reload = nil
		m.reload(ctx, nil)
	case m.wanted != len(m.pool.Slots()) && m.pool.CanScale(m.wanted): // if it cannot now, a worker's change will tell
		m.scale(ctx, nil, len(m.pool.Slots()))
	}
}

// command acts on a command. One that changes something is refused while something is under way.
func (m *master) command(ctx context.Context, msg linkMessage) {
	c := msg.Command
	if c.Verb == verbStatus {
		m.sendStatus(msg.Seq)
		return
	}
	if c.Verb == verbHealth {
		m.link.send(linkMessage{Seq: msg.Seq, Ack: true, Result: &control.Result{OK: m.healthy(), Generation: m.generation}})
		return
	}
	refuse := func(r control.Result) {
		r.Generation = m.generation
		m.link.answer(msg.Seq, r)
	}
	if m.orderStage(msg) {
		return
	}
	switch {
	case m.state.get() == Stopping || m.stop != nil:
		refuse(control.Result{Reason: "everything drains: gapless stops"})
		return
	case m.state.get() == Starting:
		refuse(control.Result{Busy: true, Reason: "the first workers are not ready yet"})
		return
	case m.op != nil:
		refuse(control.Result{Busy: true, Reason: fmt.Sprintf("%s %s is under way", article(m.op.kind), m.op.kind)})
		return
	}
	m.link.ack(msg)
	switch c.Verb {
	case verbUpgrade:
		m.upgrade(ctx, []uint64{msg.Seq}, c.Stage)
	case verbShift, verbPromote, verbAbort, verbRollback:
		refuse(control.Result{Reason: fmt.Sprintf("no generation is staged or in its window: there is nothing to %s; gapless upgrade --stage, or --keep D, begins", c.Verb.words())})
	case verbReload:
		m.reload(ctx, []uint64{msg.Seq})
	case verbScale:
		if c.Workers < 1 || c.Workers > control.MaxWorkers {
			refuse(control.Result{Reason: fmt.Sprintf("%d is no number of workers", c.Workers)})
			return
		}
		before := m.wanted
		m.want(c.Workers)
		m.scale(ctx, []uint64{msg.Seq}, before)
	case verbStatus, verbHealth:
	default:
		refuse(control.Result{Reason: fmt.Sprintf("this master does not know the command %q", c.Verb)})
	}
}

func article(kind string) string {
	if kind == control.KindUpgrade || kind == control.KindAfterPromote {
		return "an"
	}
	return "a"
}

// begin starts an operation, of which target is the generation that it is about, 0 if that is this one; its end comes to govern as m.opDone.
func (m *master) begin(ctx context.Context, kind string, answer []uint64, target int, run func(context.Context) error) {
	ctx, cancel := context.WithCancelCause(ctx)
	m.op = &operation{kind: kind, cancel: cancel, began: time.Now(), answer: answer, target: target}
	if s := m.stage.Load(); s != nil {
		s.op = m.op
	}
	if reloads(kind) {
		m.herald.failure = ""
	}
	m.announce()
	m.note()
	m.keep.Sync() // a generation's number is never used again, whoever comes next
	done := make(chan error, 1)
	m.opDone = done
	go func() {
		defer cancel(nil)
		done <- run(ctx)
	}()
}

// ended follows an operation's end, except that of an upgrade that succeeded.
func (m *master) ended(ctx context.Context, err error) {
	op := m.op
	m.op, m.opDone = nil, nil
	m.tally.Store(nil)
	staged := m.stage.Swap(nil)
	if staged != nil {
		staged.endPreview() // if it never was staged, nothing else has
	}
	result := control.Result{OK: err == nil, Generation: m.generation, Revision: m.revision, TookSeconds: time.Since(op.began).Seconds()}
	if err != nil {
		result.Reason, result.Tail = err.Error(), tailOf(err)
		var abort *upgrade.AbortError
		if errors.As(err, &abort) {
			result.Reason, result.Tail = abort.Error(), abort.Tail
		}
	}
	switch op.kind {
	case control.KindUpgrade:
		m.aborted(err, staged)
		m.emit(control.Event{Kind: op.kind, Generation: op.target, State: "aborted", Reason: result.Reason, LastLines: result.Tail, TookSeconds: result.TookSeconds})
	case control.KindAfterPromote:
		m.afterEnded(op, err)
	default:
		if asked, _ := op.waiting(); err != nil && op.kind == control.KindScale && (len(asked) > 0 || !errors.Is(err, workerpool.ErrNoneReady)) {
			m.want(op.before) // what signals asked for, and cannot be now, stays wanted
		}
		if n := op.workers; err == nil && op.kind == control.KindReload && n != m.configured {
			m.configured = n
			m.want(n) // proceed scales
		}
		state := "done"
		if err != nil {
			state = "aborted"
			m.log.Error("The "+op.kind+" failed; what served before serves on", zap.Error(err))
		} else {
			m.log.Info("The "+op.kind+" is complete", zap.Duration("took", time.Since(op.began)), zap.Int("workers", len(m.pool.Slots())))
		}
		m.emit(control.Event{Kind: op.kind, Generation: m.generation, State: state, Reason: result.Reason, TookSeconds: result.TookSeconds})
	}
	if reloads(op.kind) {
		m.herald.failed(op.kind, result.Reason)
	}
	m.announce()
	answer, undo := op.waiting()
	for _, seq := range answer {
		m.link.answer(seq, result)
	}
	undone := control.Result{OK: true, Generation: m.generation, Revision: m.revision}
	for _, seq := range undo {
		m.link.answer(seq, undone)
	}
	if staged != nil {
		staged.end(func(msg linkMessage, r control.Result) {
			r.Generation = m.generation
			m.link.answer(msg.Seq, r)
		})
	}
	m.note()
	// tableflip drops its ends of the pipes and sockets of a failed start without closing them, and a reload drops the
	// release before: their descriptors would stay until some collection of garbage, for which an idle master has no
	// other reason.
	shrink()
	m.proceed(ctx)
}

// helloLimit is how long a new master may stay silent.
func (m *master) helloLimit() time.Duration {
	if d := m.cfg.StartTimeout; d > 0 && d < upgrade.DefaultHelloTimeout {
		return d
	}
	return upgrade.DefaultHelloTimeout
}

// scale brings the number of workers to what is wanted. If it fails, as many are wanted as before; only a refusal leaves
// what signals asked for, who are told nothing, to be tried again.
func (m *master) scale(ctx context.Context, answer []uint64, before int) {
	n := m.wanted
	m.log.Info("Scaling", zap.Int("from_workers", len(m.pool.Slots())), zap.Int("workers", n))
	m.aimed.Store(int64(n))
	m.begin(ctx, control.KindScale, answer, 0, func(ctx context.Context) error {
		m.begun(m.scaling(n))
		return m.pool.Scale(ctx, n, m.order("there are to be fewer workers", false))
	})
	m.op.before = before
}

// reload replaces the workers by ones of the release that is there now.
func (m *master) reload(ctx context.Context, answer []uint64) {
	revision := m.revision + 1
	m.log.Info("Reload started", zap.Int("revision", revision))
	m.begin(ctx, control.KindReload, answer, 0, func(ctx context.Context) (err error) {
		cfg, err := m.reread()
		if err != nil {
			return err
		}
		if err := upgrade.Unchanged(cfg.Addresses, m.inv.Addresses()); err != nil {
			return err
		}
		m.op.workers = cfg.Workers
		before, pinned := m.facts.Load(), m.pinned.Load()
		l, err := m.resolve(cfg, revision)
		if err == nil {
			err = m.steps(ctx, cfg, l, control.KindReload)
		}
		defer func() {
			if err != nil {
				m.facts.Store(before)
				err = errors.Join(err, m.pin(pinned))
			}
		}()
		if err != nil {
			return err
		}
		recipe := workerpool.Recipe{Revision: revision, Launch: l.launch}
		order := m.order("a reload has replaced it", false)
		m.begun(m.reloading(revision))
		if m.cfg.Accept == upgrade.ModeShared {
			old := m.gate.renewShared()
			err = m.pool.ReloadAll(ctx, recipe, func() error { return m.gate.retire(old) }, order)
			if err != nil {
				m.gate.restoreShared(old)
			}
		} else {
			err = m.pool.Reload(ctx, recipe, m.cfg.Surge, order)
		}
		return err
	})
}
