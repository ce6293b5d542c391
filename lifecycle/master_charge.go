package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"gapless/internal/control"
	"gapless/internal/packet"
	"gapless/upgrade"
	"gapless/workerpool"

	"go.uber.org/zap"
)

func (m *master) sinceBegan() time.Duration { return time.Since(m.began) }

// govern is the life in charge. It returns when everything has stopped or the next master is in charge.
func (m *master) govern(ctx context.Context) error {
	if m.pred == nil && m.left == nil {
		if err := m.firstCharge(); err != nil {
			return err
		}
	}
	m.note()
	m.proceed(ctx)
	gone := m.link.gone
	for {
		var empty <-chan struct{}
		if m.state.get() == Stopping {
			empty = m.pool.Empty()
		}
		m.announce()
		select {
		case <-m.herald.changed:
		case <-tickOf(m.herald.patience):
			_ = m.herald.tell(extension())
		case msg := <-m.link.signals:
			m.obey(ctx, msg)
		case err := <-m.opDone:
			if err == nil && m.op.kind == control.KindUpgrade {
				_ = m.state.to(Over)
				m.log.Info("Handed over", fPID(os.Getpid()))
				// The new master waits for our end, and the process has nothing left to say: what this pool's
				// goroutines still hold belongs to the next master now.
				_ = m.log.Sync()
				m.exit()
				return errHandedOver // not reached by a process
			}
			if err == nil && m.op.kind == control.KindReload {
				m.revision++
				m.limits.released(m.revision)
			}
			m.ended(ctx, err)
		case <-m.changes:
			m.proceed(ctx)
		case <-gone:
			gone, m.bereft = nil, true
			m.log.Warn("The parent has gone; everything drains")
			m.obey(ctx, linkMessage{Signal: syscall.SIGTERM})
		case <-tickOf(m.refusal):
			m.refuse()
		case <-empty:
			_ = m.state.to(Over)
			m.pool.Wait()
			if err := m.unlink(); err != nil {
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

// heedTime is what a worker has to stop accepting when it has been told: an event loop that polls takes some 100 ms.
const heedTime = 500 * time.Millisecond

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
	m.queues.inherit(nil, m.takesHandoffs, m.living)
	m.watch.start()
	m.want(m.started + m.more)
	m.syncAccount()
	if err := m.keep.begin(m.snapshot()); err != nil {
		return err
	}
	m.keep.follow(m.snapshot)
	if err := m.herald.say("READY=1\nMAINPID="+strconv.Itoa(os.Getpid()), m.detail(control.StateServing)); err != nil {
		return err
	}
	m.log.Info("Application startup complete", zap.Strings("addresses", m.serving()), zap.Int("workers", m.cfg.Workers),
		zap.Strings("accept", m.accepts()), zap.Duration("took", m.sinceBegan()))
	if m.cfg.Banner {
		_ = m.log.Sync() // the banner comes after what was logged
		fmt.Fprint(os.Stderr, m.banner())
	}
	return nil
}

// beginStop acts on the order to stop: it drains everything, or ends it at once.
func (m *master) beginStop() {
	defer m.link.ack(*m.stop) // when it is known to whoever would follow a killed master
	now := m.stop.Signal == syscall.SIGQUIT
	if err := m.state.to(Stopping); err != nil {
		m.log.Error("stop", zap.Error(err))
		return
	}
	m.keep.Sync()
	m.log.Info("Shutting down", zap.Int("workers", len(m.pool.Workers())), zap.Bool("at_once", now))
	if now {
		m.pool.Kill("gapless was ended at once")
		return
	}
	m.queues.refuse(true)
	if m.leaves() {
		m.watch.stop()
		m.gate.leave()
		m.log.Info("The sockets are left to the service manager, for the next start")
		m.pool.DrainAll(m.order("gapless stops", true))
		return
	}
	m.gate.refuse()
	m.pool.DrainAll(m.order("gapless stops", true))
	m.emit(control.Event{Kind: control.KindStop, Generation: m.generation, State: "drain"})
	m.watch.stop()
	m.refusal = time.NewTicker(refusalEvery)
}

// refuse turns new clients away as soon as no worker takes them any more, instead of leaving them to wait for the last
// request that is under way.
func (m *master) refuse() {
	for _, w := range m.pool.Workers() {
		if w.Role == "" && w.State < workerpool.Killing && (!w.Told || time.Since(w.ToldAt) < heedTime) {
			return // it accepts, or may: shutting its socket down under it would be a fault to it
		}
	}
	m.refusal.Stop()
	if err := m.inv.Shutdown(); err != nil {
		m.log.Warn("New clients have to wait for the end", zap.Error(err))
	}
}

// aborted follows the failure of an attempt: this generation serves on. staged is nil if the new one was not to be staged.
func (m *master) aborted(err error, staged *stage) {
	if staged != nil && staged.box.get() == GenerationDraining {
		known := staged.factsNow()
		known.MasterPID = 0
		m.older = append([]facts{known}, peopled(m.older, m.pool.Records())...)
	}
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
	var stage *upgrade.StageError
	if errors.As(err, &stage) && stage.Ordered {
		m.log.Info("Upgrade aborted; this generation serves on", fields...)
		return
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
	states := map[upgrade.Phase]string{upgrade.PhaseMaster: "starting", upgrade.PhasePrepare: "starting", upgrade.PhaseSteps: "steps",
		upgrade.PhaseWorkers: "starting", upgrade.PhaseCommit: "commit"}
	e := control.Event{Kind: control.KindUpgrade, Generation: m.op.target, State: states[p.Phase], PID: p.PID, Ready: p.Ready, Total: p.Total}
	if p.Total > 0 && p.Ready == p.Total {
		e.State = "ready"
	}
	m.emit(e)
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
	answer, _ := m.op.waiting()
	err = add(parcelMaster, legacy{Next: m.next, Acked: m.link.recall(), Answer: answer, Began: m.op.began,
		Facts: append([]facts{*m.facts.Load()}, peopled(m.older, records)...), Preview: m.preview.name, After: m.after})
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
