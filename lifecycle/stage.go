package lifecycle

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"gapless/internal/control"
	"gapless/internal/pidfd"
	"gapless/internal/procfs"
	"gapless/upgrade"
	"gapless/workerpool"

	"go.uber.org/zap"
)

const (
	// stageTick is how often a staged generation is looked at for signs of hanging.
	stageTick = 100 * time.Millisecond
	// stageHung is how long a staged worker may accept none of the connections that wait for it, where --watchdog says nothing.
	stageHung = 5 * time.Second
	// windowDeaths is how often a slot's worker may die in the window: the first death may be chance.
	windowDeaths = 2
)

// stagePlan is what becomes of a new generation when it is ready.
type stagePlan struct {
	hold     bool          // it waits for orders without new connections
	weights  []int         // or gets these shares by itself
	bake     time.Duration // each so long
	keep     time.Duration // the window: it has everything, and the old generation stays whole
	verifier Verifier      // nil: nothing is verified
	preview  *stagePreview // nil: it has none of its own
}

// staged tells whether the plan is more than taking charge at once.
func (p stagePlan) staged() bool { return p.hold || p.keep > 0 }

// stageOrder is a command for a staged generation.
type stageOrder struct {
	verb    verb
	msg     linkMessage
	percent int
	keep    *time.Duration
}

// stage is a generation beside the one in charge, from its start until it takes charge or is gone. It is an upgrade.Stage.
//
// What always holds:
//   - Only Hold, on a goroutine of its own, gives the generation a share. Undo takes it away for good: no share is given after.
//   - Before the generation gets any, its workers' descriptors are with the parent as this master's own and stand in its
//     ledger, and the new master knows that it must leave them alone. So whoever dies, they are drained.
type stage struct {
	m      *master
	spares func() error // tells the new master that its workers may have clients from now on
	plan   stagePlan
	op     *operation
	box    *generationBox
	orders chan stageOrder
	faults chan error // the first counts

	storing sync.Mutex // held while workers' descriptors are stored, so that nobody closes them
	moving  sync.Mutex // held while this generation and the one in charge move together

	mu      sync.Mutex
	facts   facts
	known   map[int]workerpool.Record // by PID: workers that live, as the new master told
	deaths  map[int]int               // in the window, by slot
	queues  map[string]stageQueue     // by lane
	percent int
	spared  bool
	stuck   int       // PID of a worker that hangs; 0: none is known to
	until   time.Time // the end of a bake or the window
	steps   []int     // the shares to come
	next    string
}

// stageQueue is an accept queue: what it held when it was last looked at, and since when it has not become shorter.
type stageQueue struct {
	queue         int
	since, looked time.Time
}

func newStage(m *master, generation int, plan stagePlan) *stage {
	return &stage{m: m, plan: plan, box: newGenerationBox(generation, GenerationStarting), orders: make(chan stageOrder, 8), faults: make(chan error, 1),
		facts: facts{Generation: generation}, known: make(map[int]workerpool.Record), deaths: make(map[int]int), queues: make(map[string]stageQueue)}
}

// fault gives the generation up. The first reason counts.
func (s *stage) fault(err error) {
	select {
	case s.faults <- err:
	default:
	}
}

// Parcel is upgrade.Stage's.
func (s *stage) Parcel(p upgrade.Parcel) {
	switch p.Kind {
	case parcelFacts:
		s.mu.Lock()
		defer s.mu.Unlock()
		if err := p.Open(&s.facts); err != nil {
			s.m.log.Warn("The new master is not understood", zap.Error(err))
		}
	case parcelWorker:
		var r workerpool.Record
		err := p.Open(&r)
		r.Files = p.Files
		if err != nil || r.Generation != s.box.number {
			s.m.log.Warn("The new master is not understood", zap.Error(err))
			r.Close()
			return
		}
		s.storing.Lock()
		s.mu.Lock()
		before := s.known[r.PID]
		s.known[r.PID] = r
		spared := s.spared
		s.mu.Unlock()
		before.Close()
		if spared {
			s.keep(r)
		}
		s.storing.Unlock()
	default:
		(&workerpool.Record{Files: p.Files}).Close()
	}
	s.m.keep.Changed()
}

// keep stores a worker with the parent as one of this master's.
func (s *stage) keep(r workerpool.Record) {
	if err := s.m.keep.store(workerEntry(r.ID), r.Files...); err != nil {
		s.m.log.Error("A staged worker would not survive this master", fPID(r.PID), zap.Error(err))
	}
}

// Seats is upgrade.Stage's.
func (s *stage) Seats(seats upgrade.Seats) {
	if seats.Up {
		s.m.keep.Sync() // who it is must be known before it meets a client
		if _, err := s.m.gate.seat(seats.Lanes, true); err != nil {
			s.fault(fmt.Errorf("its share cannot be kept: %w", err))
		}
		return
	}
	deaths, living := s.buried(seats)
	if !living && !seats.Never {
		return // told twice: it was being killed, and is gone
	}
	var down []string
	if living {
		down = seats.Lanes
	}
	left, err := s.m.gate.seat(down, false)
	reason := fmt.Sprintf("its worker %d (pid %d) ended: %s", seats.Slot, seats.PID, seats.Reason)
	switch {
	case err != nil:
		s.fault(fmt.Errorf("its share cannot be kept: %w", err))
	case s.box.get() != GenerationWindow:
		s.fault(&upgrade.StageError{Reason: reason, Tail: seats.Tail})
	case left <= 0:
		s.fault(&upgrade.StageError{Reason: reason + ", and no other is ready", Tail: seats.Tail})
	case deaths >= windowDeaths:
		s.fault(&upgrade.StageError{Reason: fmt.Sprintf("%s; it has died %d times within the window", reason, deaths), Tail: seats.Tail})
	}
}

// buried forgets a worker, and returns how often one of its slot has died.
func (s *stage) buried(seats upgrade.Seats) (deaths int, living bool) {
	s.storing.Lock()
	defer s.storing.Unlock()
	s.mu.Lock()
	r, living := s.known[seats.PID]
	delete(s.known, seats.PID)
	if living || seats.Never {
		s.deaths[seats.Slot]++
	}
	deaths, spared := s.deaths[seats.Slot], s.spared
	s.mu.Unlock()
	r.Close()
	if living && spared {
		s.m.keep.remove(workerEntry(r.ID))
	}
	return deaths, living
}

// Undo is upgrade.Stage's.
func (s *stage) Undo() {
	s.moving.Lock()
	defer s.moving.Unlock()
	if st := s.box.get(); st > GenerationWindow {
		return
	}
	s.endPreview()
	if err := s.m.gate.endStage(); err != nil && !errors.Is(err, upgrade.ErrLastLane) {
		s.m.log.Error("New connections cannot be taken away from the staged generation", zap.Error(err))
	}
	s.to(GenerationAborted)
	if err := s.m.own.to(GenerationActive); err != nil {
		s.m.log.Error("undo", zap.Error(err))
	}
	if s.m.state.get() == Holding {
		_ = s.m.state.to(Upgrading)
	}
}

// Spared is upgrade.Stage's.
func (s *stage) Spared() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spared
}

// Left is upgrade.Stage's: what the new master has left drains here.
func (s *stage) Left() {
	s.mu.Lock()
	records := s.records()
	s.known = make(map[int]workerpool.Record)
	spared, stuck := s.spared, s.stuck
	s.mu.Unlock()
	next := GenerationGone
	if spared && len(records) > 0 {
		next = GenerationDraining
	}
	s.to(next)
	if next == GenerationGone {
		for i := range records {
			records[i].Close()
		}
		return
	}
	for _, r := range records {
		s.m.gate.adoptLanes(r.Lanes)
	}
	s.m.pool.Adopt(records)
	if stuck != 0 { // who waits at its lane is passed on when it is gone
		s.m.pool.Abort(stuck, "it hangs")
	}
	s.m.pool.DrainOthers(s.m.order("its generation was aborted", false))
	s.m.log.Info("The workers of the aborted generation drain", fGeneration(s.box.number), zap.Int("workers", len(records)))
}

// records returns the living workers. mu is held.
func (s *stage) records() []workerpool.Record {
	var all []workerpool.Record
	for _, r := range s.known {
		all = append(all, r)
	}
	return all
}

// kept returns what the ledger tells of it: nothing before its workers are this master's to drain.
func (s *stage) kept() ([]workerpool.Record, []facts) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.spared {
		return nil, nil
	}
	return s.records(), []facts{s.facts}
}

// pids are the workers' processes.
func (s *stage) pids() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []int
	for pid := range s.known {
		all = append(all, pid)
	}
	return all
}

// to moves the generation, and reports a mistake of ours.
func (s *stage) to(next GenerationState) {
	if err := s.box.to(next); err != nil {
		s.m.log.DPanic("impossible move", zap.Error(err))
	}
}

// spare makes the workers this master's to drain, whatever happens from here on.
func (s *stage) spare() error {
	s.storing.Lock()
	s.mu.Lock()
	first := !s.spared
	s.spared = true
	records := s.records()
	s.mu.Unlock()
	if first {
		for _, r := range records {
			s.keep(r)
		}
	}
	s.storing.Unlock()
	if !first {
		return nil
	}
	s.m.keep.Changed()
	s.m.keep.Sync()
	return s.spares()
}

// end tells who still waits for orders to be carried out that there is nothing left to order.
func (s *stage) end(answer func(linkMessage, control.Result)) {
	for {
		select {
		case o := <-s.orders:
			r := control.Result{Reason: fmt.Sprintf("generation %d is not staged any more", s.box.number)}
			if o.verb == verbAbort || o.verb == verbRollback {
				r = control.Result{OK: true}
			}
			answer(o.msg, r)
		default:
			return
		}
	}
}

// hung looks for a worker that accepts none of the connections that wait for it.
func (s *stage) hung(now time.Time) error {
	limit := s.m.cfg.Watchdog
	if limit <= 0 {
		limit = stageHung
	}
	readings := s.m.inv.Readings()
	s.mu.Lock()
	defer s.mu.Unlock()
	owner := make(map[string]workerpool.Record)
	for _, r := range s.known {
		for _, lane := range r.Lanes {
			owner[lane] = r
		}
	}
	for _, r := range readings {
		w, ours := owner[r.Name]
		if !ours || s.m.inv.Mode(r.Address) != upgrade.ModeSteered {
			continue
		}
		before, seen := s.queues[r.Name]
		if !seen || r.Queue == 0 || r.Queue < before.queue || now.Sub(before.looked) > limit/2 {
			s.queues[r.Name] = stageQueue{queue: r.Queue, since: now, looked: now}
			continue
		}
		s.queues[r.Name] = stageQueue{queue: r.Queue, since: before.since, looked: now}
		if stuck := now.Sub(before.since); stuck > limit && !traced(w.PID) {
			s.stuck = w.PID
			endStopped(w)
			return &upgrade.StageError{Reason: fmt.Sprintf("its worker %d (pid %d) has accepted none of %d waiting connections for %v",
				w.Slot, w.PID, r.Queue, stuck.Round(time.Millisecond))}
		}
	}
	return nil
}

// endStopped ends a worker that hangs because it is stopped: when its master goes the kernel would let it run for a last
// moment, in which it may accept what it then takes with it.
func endStopped(w workerpool.Record) {
	if st, err := procfs.ReadStat(w.PID); err != nil || st.State != 'T' || len(w.Files) == 0 {
		return
	}
	p, err := pidfd.Adopt(w.Files[0], w.PID) // the first descriptor of a record is its pidfd
	if err != nil {
		return
	}
	defer p.Close()
	_ = p.Signal(syscall.SIGKILL)
}

// say logs and tells a step of the stage.
func (s *stage) say(state, text string, fields ...zap.Field) {
	s.mu.Lock()
	percent := s.percent
	s.mu.Unlock()
	s.m.log.Info(text, append([]zap.Field{zap.Int("to_generation", s.box.number), zap.Int("percent", percent)}, fields...)...)
	s.m.emit(control.Event{Kind: control.KindUpgrade, Generation: s.box.number, State: state, Percent: &percent})
}

// plans notes what status tells of the steps to come.
func (s *stage) plans(next string, until time.Time, steps []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next, s.until, s.steps = next, until, steps
}

var _ upgrade.Stage = (*stage)(nil)
