package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"gapless/internal/packet"
	"gapless/upgrade"
	"gapless/workerpool"

	"go.uber.org/zap"
)

func (m *master) sinceBegan() time.Duration { return time.Since(m.began) }

// govern is the life in charge. It returns when everything has stopped or the next master is in charge.
func (m *master) govern(ctx context.Context) error {
	if m.pred == nil && m.state.get() == Starting {
		if err := m.firstCharge(); err != nil {
			return err
		}
	}
	if len(m.pending) > 0 {
		m.upgrade(ctx)
	}
	gone := m.link.gone
	var empty <-chan struct{}
	for {
		select {
		case msg := <-m.link.signals:
			m.obey(ctx, msg)
			if m.state.get() == Stopping {
				empty = m.pool.Empty()
			}
		case err := <-m.attempted:
			m.attempted, m.attempt = nil, nil
			if err == nil {
				_ = m.state.to(Over)
				m.log.Info("Handed over", fPID(os.Getpid()))
				// The new master waits for our end, and the process has nothing left to say: what this pool's
				// goroutines still hold belongs to the next master now.
				_ = m.log.Sync()
				os.Exit(0)
			}
			m.aborted(err)
			switch {
			case m.stop != nil:
				m.beginStop()
				empty = m.pool.Empty()
			case len(m.pending) > 0:
				m.upgrade(ctx)
			}
		case <-gone:
			gone = nil
			m.log.Warn("The parent has gone; everything drains")
			m.obey(ctx, linkMessage{Signal: syscall.SIGTERM})
			if m.state.get() == Stopping {
				empty = m.pool.Empty()
			}
		case <-tickOf(m.refusal):
			m.refuse()
		case <-empty:
			_ = m.state.to(Over)
			m.pool.Wait()
			if err := m.inv.Unlink(); err != nil {
				return err
			}
			return errStopped
		case <-ctx.Done():
			m.pool.Kill("its master failed")
			m.pool.Wait()
			return ctx.Err()
		}
	}
}

func tickOf(t *time.Ticker) <-chan time.Time {
	if t == nil {
		return nil
	}
	return t.C
}

// refusalEvery is how often a master that stops looks whether all workers have been told.
const refusalEvery = 20 * time.Millisecond

// firstCharge is the first master's taking charge.
func (m *master) firstCharge() error {
	if err := m.flip.Ready(); err != nil {
		return err
	}
	if err := m.state.to(Serving); err != nil {
		return err
	}
	m.queues.inherit(nil, m.takesHandoffs, m.hasWorkers)
	m.watch.start()
	m.log.Info("Application startup complete", zap.Strings("addresses", m.serving()), zap.Int("workers", m.cfg.Workers),
		zap.Strings("accept", m.accepts()), zap.Duration("took", m.sinceBegan()))
	if m.cfg.Banner {
		fmt.Fprint(os.Stderr, m.banner())
	}
	return tellParent("READY=1\nMAINPID=" + strconv.Itoa(os.Getpid()) + "\nSTATUS=" + m.statusLine())
}

// obey acts on a signal that the parent passed on. It is acknowledged when it has been acted on; one that waits for an
// upgrade under way is the next master's if that one succeeds.
func (m *master) obey(ctx context.Context, msg linkMessage) {
	switch msg.Signal {
	case syscall.SIGUSR2:
		if m.state.get() == Stopping {
			m.log.Warn("Upgrade refused: everything drains")
			m.link.ack(msg)
			return
		}
		m.pending = append(m.pending, msg)
		if m.attempted == nil {
			m.upgrade(ctx)
		} else {
			m.log.Info("An upgrade is under way; one more follows")
		}
	case syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT:
		if m.state.get() == Stopping && msg.Signal != syscall.SIGQUIT {
			m.link.ack(msg)
			return
		}
		m.stop = &msg
		if m.attempted != nil {
			m.attempt(errors.New("gapless stops")) // beginStop follows the attempt's end
			return
		}
		m.beginStop()
	case syscall.SIGUSR1:
		m.link.ack(msg)
		m.pool.SignalAll(syscall.SIGUSR1, func(pid int) bool { return catches(pid, syscall.SIGUSR1) })
	default:
		m.link.ack(msg)
		m.log.Warn("Signal ignored: this version does not act on it", zap.Stringer("signal", msg.Signal))
	}
}

// beginStop acts on the order to stop: it drains everything, or ends it at once.
func (m *master) beginStop() {
	m.link.ack(*m.stop)
	now := m.stop.Signal == syscall.SIGQUIT
	if err := m.state.to(Stopping); err != nil {
		m.log.Error("stop", zap.Error(err))
		return
	}
	m.log.Info("Shutting down", zap.Int("workers", len(m.pool.Workers())), zap.Bool("at_once", now))
	_ = tellParent("STOPPING=1\nSTATUS=draining")
	if now {
		m.pool.Kill("gapless was ended at once")
		return
	}
	m.pool.DrainAll(m.order("gapless stops", true))
	m.watch.stop()
	m.refusal = time.NewTicker(refusalEvery)
}

// refuse turns new clients away as soon as no worker takes them any more, instead of leaving them to wait for the last
// request that is under way.
func (m *master) refuse() {
	for _, w := range m.pool.Workers() {
		if w.Role == "" && !w.Told && w.State < workerpool.Killing {
			return
		}
	}
	m.refusal.Stop()
	if err := m.inv.Shutdown(); err != nil {
		m.log.Warn("New clients have to wait for the end", zap.Error(err))
	}
}

// upgrade starts an attempt, for all requests that have come so far.
func (m *master) upgrade(ctx context.Context) {
	for _, msg := range m.pending {
		m.link.ack(msg)
	}
	m.pending = nil
	if err := m.state.to(Upgrading); err != nil {
		m.log.Error("upgrade refused", zap.Error(err))
		return
	}
	generation := m.next
	m.next++
	m.log.Info("Upgrade started", zap.Int("to_generation", generation))
	ctx, m.attempt = context.WithCancelCause(ctx)
	a := &upgrade.Attempt{
		Handover: m.flip,
		Owner:    (*owner)(m),
		Offer:    upgrade.Offer{Generation: generation, PID: os.Getpid()},
		End:      endGeneration,
		Knock:    m.gate.knock,
	}
	done := make(chan error, 1)
	m.attempted = done
	go func() { done <- a.Run(ctx) }()
}

// aborted follows the failure of an attempt: this generation serves on.
func (m *master) aborted(err error) {
	m.lent.Lock()
	names := m.lent.names
	m.lent.names = nil
	m.lent.Unlock()
	m.gate.returnLanes(names)
	if err := m.state.to(Serving); err != nil {
		m.log.Error("after an aborted upgrade", zap.Error(err))
	}
	fields := []zap.Field{zap.Error(err)}
	var abort *upgrade.AbortError
	if errors.As(err, &abort) {
		fields = []zap.Field{zap.Int("to_generation", abort.Generation), zap.String("phase", string(abort.Phase)), zap.String("reason", abort.Reason)}
		if len(abort.Tail) > 0 {
			fields = append(fields, zap.Strings("last_lines", abort.Tail))
		}
	}
	m.log.Error("Upgrade aborted; this generation serves on", fields...)
}

// owner is the master as an upgrade.Attempt sees it. Its methods run on the attempt's goroutine.
type owner master

func (o *owner) Lanes(address string, count int) (names []string, files []*os.File, err error) {
	m := (*master)(o)
	names, lanes, err := m.gate.lend(address, count)
	if err != nil {
		return nil, nil, err
	}
	m.lent.Lock()
	m.lent.names = append(m.lent.names, names...)
	m.lent.Unlock()
	for _, l := range lanes {
		files = append(files, l.File())
	}
	return names, files, nil
}

func (o *owner) Progress(p upgrade.Progress) {
	m := (*master)(o)
	fields := []zap.Field{zap.String("phase", string(p.Phase))}
	if p.PID != 0 {
		fields = append(fields, fPID(p.PID))
	}
	if p.Total > 0 {
		fields = append(fields, zap.Int("ready", p.Ready), zap.Int("workers", p.Total))
	}
	m.log.Info("Upgrade", fields...)
}

func (o *owner) Freeze() ([]upgrade.Parcel, error) {
	m := (*master)(o)
	if err := m.state.to(Frozen); err != nil {
		return nil, err
	}
	m.link.pause()
	m.watch.stop()
	var parcels []upgrade.Parcel
	add := func(kind string, v any, files ...*os.File) error {
		p, err := upgrade.NewParcel(kind, v, files...)
		if err == nil {
			parcels = append(parcels, p)
		} else {
			packet.CloseAll(files)
		}
		return err
	}
	records, err := m.pool.Freeze()
	if err != nil {
		return nil, err
	}
	err = add(parcelMaster, legacy{Next: m.next})
	err = errors.Join(err, add(parcelInventory, m.inv.State()))
	for i := range records {
		err = errors.Join(err, add(parcelWorker, records[i], records[i].Files...))
	}
	for _, q := range m.queues.all() {
		recv, recvErr := packet.Dup(q.recv, "queue")
		send, sendErr := packet.Dup(q.send, "queue")
		if dupErr := errors.Join(recvErr, sendErr); dupErr != nil {
			packet.CloseAll([]*os.File{recv, send})
			err = errors.Join(err, dupErr)
			continue
		}
		err = errors.Join(err, add(parcelQueue, queueParcel{q.generation}, recv, send))
	}
	return parcels, err
}

func (o *owner) Thaw() {
	m := (*master)(o)
	m.pool.Thaw()
	m.watch.start()
	m.link.resume()
	_ = m.state.to(Upgrading)
}
