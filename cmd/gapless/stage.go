package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"gapless/internal/control"
)

// shiftCmd is `gapless shift PERCENT`.
type shiftCmd struct {
	Client clientFlags `embed:""`
	Wait   waitFlags   `embed:""`

	Percent int `arg:"" help:"Of new connections, 0 to 100."`
}

// Help is shown after the flags.
func (shiftCmd) Help() string {
	return "Exit status: 0 the staged generation gets that share; 1 not; 3 nothing runs; " + goesOn + " Connections that are open stay where they are."
}

// Run shifts.
func (c *shiftCmd) Run(r *result, stdout io.Writer, stderr errWriter) error {
	if c.Percent < 0 || c.Percent > 100 {
		*r = result{statusUsage, fmt.Errorf("shift: %d is no percentage; write 0 to 100", c.Percent)}
		return nil
	}
	return operation{
		flags: c.Client, wait: c.Wait, name: "shift", begun: "shift begun", gentle: true, done: stands,
		do: func(ctx context.Context, cl *control.Client, progress func(control.Event)) (control.Result, error) {
			return cl.Shift(ctx, control.ShiftRequest{Percent: c.Percent}, progress)
		},
	}.run(r, stdout, stderr)
}

// promoteCmd is `gapless promote`.
type promoteCmd struct {
	Client clientFlags `embed:""`
	Wait   waitFlags   `embed:""`

	Keep *time.Duration `env:"-" placeholder:"D" help:"Keep the old generation whole for so long, for rollback; default: as the upgrade, or run --keep, said."`
}

// Help is shown after the flags.
func (promoteCmd) Help() string {
	return "Exit status: 0 the staged generation is in charge, or in its window; 1 not; 3 nothing runs; " + goesOn
}

// Run promotes.
func (c *promoteCmd) Run(r *result, stdout io.Writer, stderr errWriter) error {
	if err := checkKeep(c.Keep); err != nil {
		*r = result{statusUsage, err}
		return nil //nolint:nilerr // the result tells
	}
	return operation{
		flags: c.Client, wait: c.Wait, name: "promote", begun: "promotion begun", done: stands,
		do: func(ctx context.Context, cl *control.Client, progress func(control.Event)) (control.Result, error) {
			return cl.Promote(ctx, control.PromoteRequest{KeepSeconds: keepSeconds(c.Keep)}, progress)
		},
	}.run(r, stdout, stderr)
}

// abortCmd is `gapless abort`.
type abortCmd struct {
	Client clientFlags `embed:""`
	Wait   waitFlags   `embed:""`
}

// Help is shown after the flags.
func (abortCmd) Help() string {
	return "Exit status: 0 the staged generation has no share any more, and drains what it had; 1 not; 3 nothing runs; " + goesOn
}

// Run aborts.
func (c *abortCmd) Run(r *result, stdout io.Writer, stderr errWriter) error {
	var gone takenDown
	return operation{
		flags: c.Client, wait: c.Wait, name: "abort", begun: "abort begun", gentle: true, done: gone.answer,
		do: func(ctx context.Context, cl *control.Client, progress func(control.Event)) (control.Result, error) {
			return cl.Abort(ctx, control.AbortRequest{}, gone.watch(progress))
		},
	}.run(r, stdout, stderr)
}

// rollbackCmd is `gapless rollback`.
type rollbackCmd struct {
	Client clientFlags `embed:""`
	Wait   waitFlags   `embed:""`
}

// Help is shown after the flags.
func (rollbackCmd) Help() string {
	return "Exit status: 0 the old generation has everything again, and the new one drains; 1 not, for example because the window is over; 3 nothing runs; " + goesOn
}

// Run rolls back.
func (c *rollbackCmd) Run(r *result, stdout io.Writer, stderr errWriter) error {
	var gone takenDown
	return operation{
		flags: c.Client, wait: c.Wait, name: "rollback", begun: "rollback begun", gentle: true, done: gone.answer,
		do: func(ctx context.Context, cl *control.Client, progress func(control.Event)) (control.Result, error) {
			return cl.Rollback(ctx, control.RollbackRequest{}, gone.watch(progress))
		},
	}.run(r, stdout, stderr)
}

// stands says where a generation stands now.
func stands(got control.Result) string {
	percent := 0
	if got.Percent != nil {
		percent = *got.Percent
	}
	switch got.State {
	case control.GenerationStaged:
		return fmt.Sprintf("generation %d is staged and gets %d %% of new connections: gapless shift, promote or abort", got.Generation, percent)
	case control.GenerationWindow:
		return fmt.Sprintf("generation %d gets all new connections; until its window ends: gapless rollback", got.Generation)
	}
	return fmt.Sprintf("generation %d is in charge after %s", got.Generation, took(got.TookSeconds))
}

// takenDown is the generation that an order to abort or to roll back ends; 0: not known yet.
type takenDown int

// watch keeps from a person that the upgrade was aborted: that was the order, and the answer says it.
func (t *takenDown) watch(show func(control.Event)) func(control.Event) {
	return func(e control.Event) {
		if e.Kind == control.KindUpgrade && e.State == "aborted" {
			*t = takenDown(e.Generation)
			return
		}
		show(e)
	}
}

func (t *takenDown) answer(got control.Result) string {
	if *t == 0 {
		return fmt.Sprintf("generation %d serves on", got.Generation)
	}
	return fmt.Sprintf("generation %d is aborted, and generation %d serves on", *t, got.Generation)
}

func checkKeep(d *time.Duration) error {
	if d != nil && *d < 0 {
		return fmt.Errorf("--keep: %v is negative; write a duration such as 60s, or 0s for none", *d)
	}
	return nil
}

func keepSeconds(d *time.Duration) *float64 {
	if d == nil {
		return nil
	}
	s := d.Seconds()
	return &s
}
