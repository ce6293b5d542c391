package lifecycle

import (
	"errors"
	"time"

	"gapless/upgrade"
	"gapless/workerpool"

	"go.uber.org/zap"
)

// present tells the master in charge what this one has, if it is to be staged: its facts and its workers. From then on every
// change follows.
func (m *master) present() error {
	if !m.pred.Offer().Stage {
		return nil
	}
	p, err := upgrade.NewParcel(parcelFacts, m.facts.Load())
	if err == nil {
		err = m.pred.Has(p)
	}
	if err != nil {
		return err
	}
	m.presented.Store(true)
	for _, w := range m.pool.Workers() {
		if err := m.tellWorker(w.PID); err != nil {
			return err
		}
	}
	return nil
}

// tellWorker passes a worker's record on.
func (m *master) tellWorker(pid int) error {
	r, err := m.pool.Record(pid)
	if errors.Is(err, workerpool.ErrNoWorker) {
		return nil // it has gone, which is told as well
	}
	if err != nil {
		return err
	}
	defer r.Close()
	return m.tellRecord(r)
}

func (m *master) tellRecord(r workerpool.Record) error {
	p, err := upgrade.NewParcel(parcelWorker, r, r.Files...)
	if err != nil {
		return err
	}
	return m.pred.Has(p)
}

// seats tells the master in charge that a worker has come or gone.
func (m *master) seats(e workerpool.Event) {
	if e.Generation != m.generation || e.Role != "" {
		return
	}
	s := upgrade.Seats{Slot: e.Slot, PID: e.PID, Lanes: e.Lanes}
	switch e.State {
	case workerpool.Ready:
		s.Up = true
		if err := m.tellWorker(e.PID); err != nil {
			m.log.Error("The master in charge does not learn of a worker", fPID(e.PID), zap.Error(err))
			return
		}
	case workerpool.Killing, workerpool.Exited:
		s.Never = e.From == workerpool.Starting
		s.Reason, s.Tail = e.Reason, m.pool.LastLines(e.PID)
	case workerpool.Starting, workerpool.Draining:
		return
	}
	m.pred.Seats(s)
}

// leave ends a generation whose workers may have clients: they are left as they are, with what is known of them, to the
// master in charge, or to the one in its place.
func (m *master) leave() {
	if m.pool == nil {
		return
	}
	m.presented.Store(false)
	records, err := m.pool.Freeze()
	if err != nil {
		m.log.Error("The workers are left without a last word", zap.Error(err))
	}
	for i := range records {
		if err := m.tellRecord(records[i]); err != nil {
			m.log.Debug("not told to the master in charge", fPID(records[i].PID), zap.Error(err))
		}
		records[i].Close()
	}
}

// keepPresented ends a staged worker that no longer says WATCHDOG=1: the one in charge looks at its lanes alone.
func (m *master) keepPresented(now time.Time) {
	if !m.presented.Load() || m.cfg.Watchdog <= 0 {
		return
	}
	slept := m.limits.slept(now, m.cfg.Watchdog)
	for _, w := range m.mine() {
		if reason := silent(w, now, m.cfg.Watchdog); reason != "" && !slept && !traced(w.PID) {
			m.log.Error("Worker hangs; it is ended", fPID(w.PID), zap.Int("worker", w.Slot), zap.String("reason", reason))
			m.pool.Abort(w.PID, reason)
		}
	}
}
