package main

import (
	"context"
	"fmt"
	"io"

	"gapless/internal/control"
)

// upgradeCmd is `gapless upgrade`.
type upgradeCmd struct {
	Client clientFlags `embed:""`
	Wait   waitFlags   `embed:""`

	WaitDrained bool `env:"-" xor:"wait" help:"Wait also until the old generation is gone."`
}

// Help is shown after the flags.
func (upgradeCmd) Help() string {
	return "Exit status: 0 the new generation is in charge; 1 aborted, and the old one serves on; 3 nothing runs."
}

// Run upgrades.
func (c *upgradeCmd) Run(r *result, stdout io.Writer, stderr errWriter) error {
	return operation{
		flags: c.Client, wait: c.Wait, name: "upgrade", begun: "upgrade begun",
		do: func(ctx context.Context, cl *control.Client, progress func(control.Event)) (control.Result, error) {
			return cl.Upgrade(ctx, control.UpgradeRequest{WaitDrained: c.WaitDrained}, progress)
		},
		done: func(got control.Result) string {
			what := "is in charge"
			if c.WaitDrained {
				what = "is in charge alone"
			}
			return fmt.Sprintf("generation %d %s after %s", got.Generation, what, took(got.TookSeconds))
		},
	}.run(r, stdout, stderr)
}
