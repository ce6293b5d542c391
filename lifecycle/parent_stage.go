package lifecycle

import (
	"context"
	"fmt"
	"time"

	"gapless/internal/control"
)

// Upgrade is POST /v1/upgrade.
func (c *controller) Upgrade(ctx context.Context, req control.UpgradeRequest, progress func(control.Event)) (control.Result, error) {
	cmd := command{Verb: verbUpgrade}
	if req.Stage || req.KeepSeconds != nil {
		cmd.Stage = &stageRequest{Hold: req.Stage, Preview: req.Preview, Weights: req.Weights, Bake: seconds(req.BakeSeconds), Keep: keepOf(req.KeepSeconds),
			Verify: verification{req.Verify, req.VerifyHTTP, req.VerifyProbes, seconds(req.VerifyTimeoutSeconds)}}
	}
	r, err := c.operate(ctx, cmd, progress)
	if err != nil || !r.OK || !req.WaitDrained || r.State == control.GenerationStaged {
		return r, err
	}
	return c.drained(ctx, r, progress)
}

// drained waits until the generations before r's are gone.
func (c *controller) drained(ctx context.Context, r control.Result, progress func(control.Event)) (control.Result, error) {
	began := time.Now()
	tick := time.NewTicker(drainedEvery)
	defer tick.Stop()
	var told time.Time
	for left := -1; ; {
		s, err := c.Status(ctx)
		if err != nil {
			return r, err
		}
		workers, serves := 0, false
		var oldest *float64
		for _, g := range s.Generations {
			if g.Generation < r.Generation {
				workers += len(g.Workers)
				oldest = oldestOf(append(g.Workers, control.Worker{Oldest: oldest}))
			}
			serves = serves || g.Generation == r.Generation && g.State != control.GenerationDraining
		}
		switch {
		case s.State == control.StateNoMaster: // ask again
		case r.State == control.GenerationWindow && !serves:
			last := s.LastUpgrade
			if last == nil || last.Generation != r.Generation {
				last = &control.LastUpgrade{Reason: "a later one has taken its place"}
			}
			r.OK, r.Reason, r.Tail = false, last.Reason, last.Tail
			return r, nil
		case workers == 0:
			r.State, r.Percent = "", nil
			r.TookSeconds += time.Since(began).Seconds()
			return r, nil
		}
		// The age of the oldest request is told again and again, less often the longer it lasts.
		now := time.Now()
		if again := oldest != nil && now.Sub(told) >= max(time.Second, now.Sub(began)/10); (again || workers != left) && progress != nil && s.Staged == nil {
			left, told = workers, now
			progress(control.Event{Time: now, Kind: control.KindUpgrade, Generation: r.Generation, State: "drain", Total: workers, Oldest: oldest,
				Text: fmt.Sprintf("%d workers of older generations drain", workers)})
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return r, context.Cause(ctx)
		}
	}
}

// Shift is POST /v1/shift.
func (c *controller) Shift(ctx context.Context, req control.ShiftRequest, progress func(control.Event)) (control.Result, error) {
	return c.operate(ctx, command{Verb: verbShift, Percent: req.Percent}, progress)
}

// Promote is POST /v1/promote.
func (c *controller) Promote(ctx context.Context, req control.PromoteRequest, progress func(control.Event)) (control.Result, error) {
	return c.operate(ctx, command{Verb: verbPromote, Stage: &stageRequest{Keep: keepOf(req.KeepSeconds)}}, progress)
}

// Abort is POST /v1/abort.
func (c *controller) Abort(ctx context.Context, _ control.AbortRequest, progress func(control.Event)) (control.Result, error) {
	return c.operate(ctx, command{Verb: verbAbort}, progress)
}

// Rollback is POST /v1/rollback.
func (c *controller) Rollback(ctx context.Context, _ control.RollbackRequest, progress func(control.Event)) (control.Result, error) {
	return c.operate(ctx, command{Verb: verbRollback}, progress)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func keepOf(s *float64) *time.Duration {
	if s == nil {
		return nil
	}
	d := seconds(*s)
	return &d
}
