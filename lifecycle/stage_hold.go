package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gapless/internal/control"
	"gapless/upgrade"
	"gapless/workerpool"

	"go.uber.org/zap"
)

// Hold is upgrade.Stage's: it walks through the plan, and by orders where that says so.
func (s *stage) Hold(ctx context.Context) error {
	if err := s.begin(); err != nil {
		return err
	}
	s.beginPreview()
	defer s.endPreview()
	keep, err := s.plan.keep, error(nil)
	if s.plan.hold {
		s.plans("it is promoted, shifted or aborted by order", time.Time{}, s.plan.weights)
		s.say("staged", "Generation staged")
		if keep, err = s.walk(ctx); err != nil {
			return err
		}
		if err := s.verify(ctx, true); err != nil {
			return err
		}
	}
	if keep <= 0 {
		return nil
	}
	return s.window(ctx, keep)
}

// begin puts the generation beside the one in charge.
func (s *stage) begin() error {
	lanes, err := s.present()
	if err != nil {
		return err
	}
	s.moving.Lock()
	defer s.moving.Unlock()
	// First: after an Undo this fails.
	if err := s.box.to(GenerationStaged); err != nil {
		return err
	}
	return errors.Join(s.m.gate.beginStage(lanes), s.m.state.to(Holding))
}

// beginWindow has the generation in charge stand back.
func (s *stage) beginWindow() error {
	s.moving.Lock()
	defer s.moving.Unlock()
	if err := s.box.to(GenerationWindow); err != nil {
		return err
	}
	return s.m.own.to(GenerationKept)
}

// present returns the lanes of the workers that the new master has told of.
func (s *stage) present() (lanes []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.known {
		lanes = append(lanes, r.Lanes...)
	}
	if len(lanes) == 0 {
		return nil, errors.New("the gapless on disk does not tell of its workers and cannot be staged; upgrade without --stage and --keep")
	}
	return lanes, nil
}

// walk is the part without a window. It returns, with the window that follows, when the generation is to be promoted.
func (s *stage) walk(ctx context.Context) (keep time.Duration, err error) {
	if err := s.verify(ctx, false); err != nil {
		return 0, err
	}
	if len(s.plan.weights) == 0 {
		s.answerAll(control.GenerationStaged)
		return s.byHand(ctx)
	}
	for i, percent := range s.plan.weights {
		if err := s.shift(percent); err != nil {
			return 0, err
		}
		if err := s.verify(ctx, false); err != nil {
			return 0, err
		}
		next := "it is promoted"
		if left := s.plan.weights[i+1:]; len(left) > 0 {
			next = fmt.Sprintf("it gets %d %%", left[0])
		}
		s.plans(next, time.Now().Add(s.plan.bake), s.plan.weights[i+1:])
		t := time.NewTimer(s.plan.bake)
		o, err := s.await(ctx, t.C, nil, verbPromote)
		t.Stop()
		if err != nil {
			return 0, err
		}
		if o != nil {
			return s.promotion(o), nil
		}
	}
	return s.plan.keep, nil
}

// byHand follows orders until one is to promote.
func (s *stage) byHand(ctx context.Context) (keep time.Duration, err error) {
	for {
		s.plans("it is promoted, shifted or aborted by order", time.Time{}, nil)
		o, err := s.await(ctx, nil, nil, verbShift, verbPromote)
		if err != nil {
			return 0, err
		}
		if o.verb == verbPromote {
			return s.promotion(o), nil
		}
		began := time.Now()
		if err := s.shift(o.percent); err != nil {
			// Nothing has changed, so the generation stays where it is.
			s.m.link.answer(o.msg.Seq, control.Result{Generation: s.box.number, Reason: err.Error()})
			continue
		}
		s.op.wait(o.msg.Seq)
		s.m.noteOperation()
		if err := s.verify(ctx, false); err != nil {
			return 0, err
		}
		s.op.forget(o.msg.Seq)
		s.answer(o.msg.Seq, control.GenerationStaged, began)
		s.m.noteOperation()
	}
}

// promotion takes an order to promote.
func (s *stage) promotion(o *stageOrder) (keep time.Duration) {
	s.op.wait(o.msg.Seq) // the next master answers, or this one at the window's begin
	s.m.noteOperation()
	if o.keep != nil {
		return *o.keep
	}
	return s.plan.keep
}

// window gives the generation everything, and waits.
func (s *stage) window(ctx context.Context, keep time.Duration) error {
	if err := s.beginWindow(); err != nil {
		return err
	}
	if err := s.shift(100); err != nil {
		return err
	}
	s.plans("it takes charge, and the old generation drains", time.Now().Add(keep), nil)
	s.say("window", "The new generation has everything; the old one is kept", zap.Duration("window", keep))
	s.answerAll(control.GenerationWindow)
	t := time.NewTimer(keep)
	defer t.Stop()
	o, err := s.await(ctx, t.C, nil, verbPromote, verbUpgrade)
	if err == nil && o != nil && o.verb == verbPromote {
		s.promotion(o)
	}
	return err
}

// shift gives the generation a share.
func (s *stage) shift(percent int) error {
	if percent > 0 {
		if err := s.spare(); err != nil {
			return err
		}
	}
	if err := s.m.gate.shift(percent); err != nil {
		return err
	}
	s.mu.Lock()
	s.percent = percent
	s.mu.Unlock()
	if s.box.get() == GenerationStaged {
		s.say("shift", "The staged generation got another share")
	}
	return nil
}

// verify asks the verifier, if there is one.
func (s *stage) verify(ctx context.Context, final bool) error {
	if s.plan.verifier == nil {
		return s.check()
	}
	s.mu.Lock()
	step := Step{Generation: s.box.number, Percent: s.percent, Final: final}
	s.mu.Unlock()
	s.plans("its verification ends", time.Time{}, s.steps)
	s.say("verify", "The staged generation is verified")
	verifying, cancel := context.WithCancel(ctx)
	done, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		done <- s.plan.verifier.Verify(verifying, step)
	}()
	_, err := s.await(ctx, nil, done)
	cancel()
	<-ended
	return err
}

// check returns a fault that has come meanwhile.
func (s *stage) check() error {
	select {
	case err := <-s.faults:
		return err
	default:
		return nil
	}
}

// await waits for the first of: the timer (nil, nil), an order of an accepted kind, the end of something (its error), or a
// reason to give the generation up (an error). Other orders are refused meanwhile.
func (s *stage) await(ctx context.Context, timer <-chan time.Time, done <-chan error, accept ...verb) (*stageOrder, error) {
	tick := time.NewTicker(stageTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case err := <-s.faults:
			return nil, err
		case err := <-done:
			return nil, err
		case <-timer:
			return nil, nil
		case now := <-tick.C:
			if err := s.hung(now); err != nil {
				return nil, err
			}
		case o := <-s.orders:
			if o.verb == verbAbort || o.verb == verbRollback {
				s.m.link.ack(o.msg)
				s.op.waitUndo(o.msg.Seq)
				s.m.noteOperation()
				return nil, &upgrade.StageError{Ordered: true, Reason: map[verb]string{verbAbort: "it was aborted by order", verbRollback: "it was rolled back by order"}[o.verb]}
			}
			for _, v := range accept {
				if v == o.verb {
					if v != verbUpgrade { // that one is the next master's
						s.m.link.ack(o.msg)
					}
					return &o, nil
				}
			}
			s.refuse(o)
		}
	}
}

// refuse says why an order is not for now.
func (s *stage) refuse(o stageOrder) {
	why := map[GenerationState]string{
		GenerationStaged: fmt.Sprintf("generation %d goes its way by itself at the moment", s.box.number),
		GenerationWindow: fmt.Sprintf("generation %d has all new connections already: roll it back, or promote it for good", s.box.number),
	}[s.box.get()]
	s.m.link.answer(o.msg.Seq, control.Result{Busy: true, Generation: s.box.number, Reason: why})
}

// answer tells who ordered a step that it has been done.
func (s *stage) answer(seq uint64, state string, began time.Time) {
	s.mu.Lock()
	percent := s.percent
	s.mu.Unlock()
	s.m.link.answer(seq, control.Result{OK: true, Generation: s.box.number, Revision: 1, State: state, Percent: &percent, TookSeconds: time.Since(began).Seconds()})
}

// answerAll tells everybody who waits for this generation that it stands where it does. What comes of it later they see in
// the status.
func (s *stage) answerAll(state string) {
	for _, seq := range s.op.takeWaiting() {
		s.answer(seq, state, s.op.began)
	}
	s.m.noteOperation()
}

// status tells of it for as long as it is staged or in its window, else nil.
func (s *stage) status() *control.Staged {
	state := s.box.get()
	if state != GenerationStaged && state != GenerationWindow {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return &control.Staged{Generation: s.box.number, State: state.String(), Percent: s.percent, Steps: s.steps, Until: s.until, Next: s.next}
}

// factsNow is what the new master has told of itself.
func (s *stage) factsNow() facts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.facts
}

// infos are the living workers, from when the generation is staged.
func (s *stage) infos() []workerpool.Info {
	if st := s.box.get(); st != GenerationStaged && st != GenerationWindow {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []workerpool.Info
	for _, r := range s.known {
		all = append(all, r.Info)
	}
	return all
}
