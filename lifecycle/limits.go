package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"gapless/internal/procfs"
	"gapless/upgrade"
	"gapless/workerpool"

	"go.uber.org/zap"
)

// limitsEvery is how often workers are looked at for their memory, their age and signs of hanging.
const limitsEvery = 250 * time.Millisecond

// memoryEvery is how often memory is read: reading it is not free for the process that is read.
const memoryEvery = time.Second

// limits is what keepLimits remembers.
type limits struct {
	lanes    map[string]laneQueue
	memoryAt time.Time
	lastLook time.Time

	mu    sync.Mutex
	since time.Time // when the release began: with the master, or with the last reload
	bad   string    // why the release looks bad; "" if it does not
	badOf int       // the revision that does
}

// laneQueue is when a lane's accept queue was last seen to move.
type laneQueue struct {
	queue int
	since time.Time
}

func (l *limits) badRelease() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bad
}

// released notes that a reload has brought another release, which has a probation of its own. What it did wrong while
// the reload went on stays known.
func (l *limits) released(revision int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.since = time.Now()
	if l.badOf < revision {
		l.bad = ""
	}
}

// onProbation tells whether the release is still young.
func (l *limits) onProbation(limit time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Since(l.since) <= limit
}

// probation notes the death of a worker that had been ready: within the first time of its release it is the release that
// looks bad.
func (m *master) probation(e workerpool.Event) {
	if e.Role != "" || e.State != workerpool.Exited || e.From != workerpool.Ready || e.Generation != m.generation || m.state.get() == Stopping ||
		m.cfg.Probation <= 0 || !m.limits.onProbation(m.cfg.Probation) {
		return
	}
	m.limits.mu.Lock()
	first := m.limits.bad == ""
	m.limits.bad = fmt.Sprintf("worker %d (pid %d) of this release died %v after its start: %s", e.Slot, e.PID,
		time.Since(e.Started).Round(time.Millisecond), e.Reason)
	m.limits.badOf = e.Revision
	reason := m.limits.bad
	m.limits.mu.Unlock()
	if first {
		m.log.Error("The release looks bad", zap.String("reason", reason), zap.Duration("probation", m.cfg.Probation))
	}
}

// keepLimits is the actor that replaces workers that grew too large or too old, and ends those that hang. It does neither
// before this master is in charge nor while something else changes the workers.
func (m *master) keepLimits(ctx context.Context) error {
	m.limits.lanes = make(map[string]laneQueue)
	told := false
	tick := time.NewTicker(limitsEvery)
	defer tick.Stop()
	var replaced chan error
	for {
		select {
		case now := <-tick.C:
			if st := m.state.get(); st != Serving && st != Holding {
				m.keepPresented(now)
				m.limits.lanes = make(map[string]laneQueue)
				continue
			}
			if !told {
				told = true
				m.tellMemory()
				// The start is over, and so is what it needed. Not before, as it has no time for collecting garbage often.
				beSmall()
				shrink()
				if m.cfg.MaxMemory == 0 && m.cfg.MaxLifetime == 0 && m.cfg.Watchdog == 0 {
					tick.Stop() // nothing is limited: do not wake for it
				}
			}
			m.endHung(now)
			if replaced == nil {
				if pid, reason := m.outgrown(now); pid != 0 {
					replaced = make(chan error, 1)
					done := replaced
					go func() { done <- m.pool.Replace(pid, m.order(reason, false)) }()
					m.log.Info("Worker is replaced", fPID(pid), zap.String("reason", reason))
				}
			}
		case err := <-replaced:
			replaced = nil
			if err != nil && !errors.Is(err, workerpool.ErrNoWorker) && !errors.Is(err, workerpool.ErrSlotBusy) && !errors.Is(err, workerpool.ErrFrozen) {
				m.log.Error("Worker cannot be replaced; it serves on", zap.Error(err))
			}
		case <-ctx.Done():
			if replaced != nil {
				<-replaced // the pool ends with its master, and the start with the pool
			}
			return ctx.Err()
		}
	}
}

// healthy tells whether a worker of this generation is ready.
func (m *master) healthy() bool {
	if !m.pooled.Load() {
		return false
	}
	for _, s := range m.pool.Slots() {
		if s.Ready {
			return true
		}
	}
	return false
}

// mine returns this generation's workers that are ready.
func (m *master) mine() []workerpool.Info {
	var own []workerpool.Info
	for _, w := range m.pool.Workers() {
		if w.Generation == m.generation && w.State == workerpool.Ready && w.Role == "" {
			own = append(own, w)
		}
	}
	return own
}

// outgrown returns a worker to replace, and why; 0: none.
func (m *master) outgrown(now time.Time) (pid int, reason string) {
	own := m.mine()
	if m.cfg.MaxLifetime > 0 {
		for _, w := range own {
			if limit := spread(m.cfg.MaxLifetime, w.PID); now.Sub(w.Started) > limit {
				return w.PID, fmt.Sprintf("it has lived for %v, of at most %v", now.Sub(w.Started).Round(time.Second), limit.Round(time.Second))
			}
		}
	}
	if m.cfg.MaxMemory == 0 || now.Sub(m.limits.memoryAt) < memoryEvery {
		return 0, ""
	}
	m.limits.memoryAt = now
	for _, w := range own {
		mem := memoryOf(w.PID)
		used := mem.PSS
		if used == 0 {
			used = mem.RSS
		}
		if used > m.cfg.MaxMemory {
			return w.PID, fmt.Sprintf("it occupies %d MiB of at most %d MiB", used>>20, m.cfg.MaxMemory>>20)
		}
	}
	return 0, ""
}

// spread shortens a lifetime by up to a tenth, differently for each worker, so that those that started together do not
// go together.
func spread(d time.Duration, pid int) time.Duration {
	return d - time.Duration(uint64(d)/10*(uint64(pid)*2654435761%1024)/1024)
}

// endHung ends workers that have not sent WATCHDOG=1 in time although they once did, and those on a lane of their own
// whose accept queue holds connections and has not got shorter for that time. A machine that was suspended shows in the
// time between two looks; then everything is measured anew. A worker that is being traced is in a debugger, and not hung.
func (m *master) endHung(now time.Time) {
	d := m.cfg.Watchdog
	if d <= 0 {
		return
	}
	slept := m.limits.slept(now, d)
	if slept {
		m.limits.lanes = make(map[string]laneQueue)
	}
	queues := make(map[string]upgrade.LaneReading)
	for _, r := range m.inv.Readings() {
		queues[r.Name] = r
	}
	for _, w := range m.mine() {
		if reason := m.hung(w, queues, now, slept); reason != "" && !traced(w.PID) {
			m.log.Error("Worker hangs; it is ended and replaced", fPID(w.PID), zap.Int("worker", w.Slot), zap.String("reason", reason))
			m.pool.Abort(w.PID, reason)
		}
	}
}

func (m *master) hung(w workerpool.Info, queues map[string]upgrade.LaneReading, now time.Time, slept bool) string {
	d := m.cfg.Watchdog
	if reason := silent(w, now, d); reason != "" && !slept {
		return reason
	}
	for _, lane := range w.Lanes {
		r, ok := queues[lane]
		if !ok || m.inv.Mode(r.Address) != upgrade.ModeSteered {
			continue
		}
		before, known := m.limits.lanes[lane]
		if !known || r.Queue == 0 || r.Queue < before.queue {
			m.limits.lanes[lane] = laneQueue{r.Queue, now}
			continue
		}
		m.limits.lanes[lane] = laneQueue{r.Queue, before.since}
		if stuck := now.Sub(before.since); stuck > d {
			delete(m.limits.lanes, lane)
			return fmt.Sprintf("it has accepted none of %d waiting connections for %v", r.Queue, stuck.Round(time.Millisecond))
		}
	}
	return ""
}

// slept tells, from the time since the last look, whether the machine was suspended.
func (l *limits) slept(now time.Time, d time.Duration) bool {
	slept := !l.lastLook.IsZero() && now.Round(0).Sub(l.lastLook.Round(0)) > d/2+4*limitsEvery
	l.lastLook = now
	return slept
}

// silent says that a worker that once sent WATCHDOG=1 has not done so in time.
func silent(w workerpool.Info, now time.Time, d time.Duration) string {
	if quiet := now.Sub(w.Beat); !w.Beat.IsZero() && quiet > d {
		return fmt.Sprintf("it has not sent WATCHDOG=1 for %v", quiet.Round(time.Millisecond))
	}
	return ""
}

// traced tells whether a process is in a debugger.
func traced(pid int) bool {
	s, err := procfs.ReadStat(pid)
	return err == nil && s.State == 't'
}
