package main

import (
	"context"
	"fmt"
	"io"

	"gapless/internal/control"
)

// scaleCmd is `gapless scale N`.
type scaleCmd struct {
	Client clientFlags `embed:""`
	Wait   waitFlags   `embed:""`

	Workers int `arg:"" name:"n" help:"Worker processes, 1 to 4096."`
}

// Help is shown after the flags.
func (scaleCmd) Help() string {
	return "Exit status: 0 so many workers serve; 1 not; 3 nothing runs; " + goesOn + " The number survives upgrades."
}

// Run scales.
func (c *scaleCmd) Run(r *result, stdout io.Writer, stderr errWriter) error {
	if c.Workers < 1 || c.Workers > control.MaxWorkers {
		*r = result{statusUsage, fmt.Errorf("scale: %d is no number of workers; write 1 to %d", c.Workers, control.MaxWorkers)}
		return nil
	}
	return operation{
		flags: c.Client, wait: c.Wait, name: "scale", begun: "scaling begun",
		do: func(ctx context.Context, cl *control.Client, progress func(control.Event)) (control.Result, error) {
			return cl.Scale(ctx, control.ScaleRequest{Workers: c.Workers}, progress)
		},
		done: func(got control.Result) string {
			return fmt.Sprintf("workers: %d, after %s", c.Workers, took(got.TookSeconds))
		},
	}.run(r, stdout, stderr)
}
