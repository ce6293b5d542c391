package main

import (
	"context"
	"fmt"
	"io"

	"gapless/internal/control"
)

// reloadCmd is `gapless reload`.
type reloadCmd struct {
	Client clientFlags `embed:""`
	Wait   waitFlags   `embed:""`
}

// Help is shown after the flags.
func (reloadCmd) Help() string {
	return "Exit status: 0 every worker has been replaced; 1 a replacement failed, and what serves was left; 3 nothing runs; " + goesOn
}

// Run reloads.
func (c *reloadCmd) Run(r *result, stdout io.Writer, stderr errWriter) error {
	return operation{
		flags: c.Client, wait: c.Wait, name: "reload", begun: "reload begun",
		do: func(ctx context.Context, cl *control.Client, progress func(control.Event)) (control.Result, error) {
			return cl.Reload(ctx, control.ReloadRequest{}, progress)
		},
		done: func(got control.Result) string {
			return fmt.Sprintf("generation %d serves with revision %d after %s", got.Generation, got.Revision, took(got.TookSeconds))
		},
	}.run(r, stdout, stderr)
}
