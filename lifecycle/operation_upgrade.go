package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"gapless/internal/control"
	"gapless/upgrade"

	"go.uber.org/zap"
)

// wait adds a command that waits for the operation's result.
func (o *operation) wait(seq uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answer = append(o.answer, seq)
}

// waitUndo adds one that waits for its being undone.
func (o *operation) waitUndo(seq uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.undo = append(o.undo, seq)
}

// forget removes one that has its answer.
func (o *operation) forget(seq uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answer = slices.DeleteFunc(o.answer, func(s uint64) bool { return s == seq })
}

// takeWaiting removes all that wait for the result.
func (o *operation) takeWaiting() (answer []uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	answer, o.answer = o.answer, nil
	return answer
}

func (o *operation) waiting() (answer, undo []uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.answer), slices.Clone(o.undo)
}

// record is what the ledger tells of it.
func (o *operation) record() *operationRecord {
	answer, undo := o.waiting()
	return &operationRecord{Kind: o.kind, Target: o.target, Began: o.began, Answer: answer, Undo: undo}
}

// noteOperation tells the ledger who waits for the staged generation now. It is called by Hold.
func (m *master) noteOperation() {
	s := m.stage.Load()
	if s == nil {
		return
	}
	m.account.Lock()
	m.account.operation = s.op.record()
	m.account.Unlock()
	m.keep.Changed()
}

// upgrade starts an attempt. request is nil for one that was asked for by a signal.
func (m *master) upgrade(ctx context.Context, answer []uint64, request *stageRequest) {
	plan, err := m.plan(request)
	if err == nil {
		err = m.state.to(Upgrading)
	}
	if err != nil {
		plan.preview.close(m.log)
		m.log.Error("Upgrade refused", zap.Error(err))
		for _, seq := range answer {
			m.link.answer(seq, control.Result{Generation: m.generation, Invalid: errors.Is(err, errInvalid), Reason: err.Error()})
		}
		return
	}
	generation := m.next
	m.next++
	m.log.Info("Upgrade started", zap.Int("to_generation", generation))
	a := &upgrade.Attempt{
		Handover: m.flip,
		Owner:    (*owner)(m),
		Offer:    upgrade.Offer{Generation: generation, PID: os.Getpid(), Workers: m.wanted, Configured: m.configured, Stage: plan.staged(), Addresses: m.inv.Addresses()},
		End:      endGeneration,
		Knock:    m.gate.knock,
		Hello:    m.helloLimit(),
	}
	if plan.staged() {
		s := newStage(m, generation, plan)
		s.spares, a.Stage = a.Spare, s
		a.End = func(pid int) {
			if s.Spared() {
				endAround(pid, s.pids())
			} else {
				endGeneration(pid)
			}
		}
		m.stage.Store(s)
	}
	m.begin(ctx, control.KindUpgrade, answer, generation, func(ctx context.Context) error { return m.attempt(a, ctx) })
}

// plan is what becomes of the new generation when it is ready.
func (m *master) plan(request *stageRequest) (plan stagePlan, err error) {
	plan.keep = m.cfg.Keep
	if request != nil {
		plan.hold, plan.weights, plan.bake = request.Hold, request.Weights, request.Bake
		if request.Keep != nil {
			plan.keep = *request.Keep
		}
		if plan.hold {
			if plan.verifier, err = m.verifier(request); err != nil {
				return plan, err
			}
		}
	}
	if !plan.staged() {
		return plan, nil
	}
	err = m.gate.steerable()
	switch {
	case err == nil && plan.hold:
		plan.preview, err = m.openStagePreview(request.Preview, m.inv.Addresses())
		return plan, err
	case err == nil:
	case plan.hold:
		return plan, fmt.Errorf("the new generation %w; a plain upgrade works", err)
	case request != nil && request.Keep != nil:
		return plan, fmt.Errorf("the old generation cannot be kept: the new one %w; an upgrade without --keep works", err)
	default: // it was possible when gapless was started; better none than no upgrade at all
		m.log.Warn("The old generation is not kept", zap.Error(err))
		plan.keep = 0
	}
	return plan, nil
}

// orderStage passes an order on to the staged generation, if there is one and the command is for it. It returns whether
// the command has been dealt with.
func (m *master) orderStage(msg linkMessage) bool {
	s := m.stage.Load()
	if s == nil || m.stop != nil || m.state.get() != Holding {
		return false
	}
	c := msg.Command
	o := stageOrder{verb: c.Verb, msg: msg, percent: c.Percent}
	switch c.Verb {
	case verbPromote:
		if c.Stage != nil {
			o.keep = c.Stage.Keep
		}
	case verbShift, verbAbort, verbRollback:
	case verbUpgrade:
		if s.box.get() != GenerationWindow {
			m.refuseStaged(s, msg)
			return true
		}
		m.wishes.command = append(m.wishes.command, msg) // the next master's
		m.closeWindow()
		return true
	case verbReload, verbScale:
		m.refuseStaged(s, msg)
		return true
	default:
		return false
	}
	select {
	case s.orders <- o:
	default:
		m.link.answer(msg.Seq, control.Result{Busy: true, Generation: s.box.number, Reason: "too many orders wait for the staged generation"})
	}
	return true
}

func (m *master) refuseStaged(s *stage, msg linkMessage) {
	why := fmt.Sprintf("generation %d is staged: promote or abort it first", s.box.number)
	if s.box.get() == GenerationWindow {
		why = fmt.Sprintf("generation %d is in its window: wait, or promote it or roll it back first", s.box.number)
	}
	m.link.answer(msg.Seq, control.Result{Busy: true, Generation: m.generation, Reason: why})
}

// closeWindow has the generation that is in its window take charge now, as an upgrade was asked for.
func (m *master) closeWindow() {
	s := m.stage.Load()
	if s == nil || s.box.get() != GenerationWindow {
		return
	}
	m.log.Info("The window ends early: another upgrade was asked for", zap.Int("to_generation", s.box.number))
	select {
	case s.orders <- stageOrder{verb: verbUpgrade}:
	default: // it is being ordered about already
	}
}
