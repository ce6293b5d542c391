package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"gapless/internal/control"
	"gapless/internal/pidfd"
)

// stopCmd is `gapless stop`.
type stopCmd struct {
	Client clientFlags `embed:""`
	Wait   waitFlags   `embed:""`

	Now bool `env:"-" help:"Kill the workers instead of draining them."`
}

// Help is shown after the flags.
func (stopCmd) Help() string {
	return "Exit status: 0 everything has ended; 1 not; 3 nothing runs; " + goesOn
}

// Run stops.
func (c *stopCmd) Run(r *result, stdout io.Writer, stderr errWriter) error {
	var again service // what starts it again
	err := operation{
		flags: c.Client, wait: c.Wait, name: "stop", begun: "stop begun",
		do: func(ctx context.Context, cl *control.Client, progress func(control.Event)) (control.Result, error) {
			again, _ = runningService(ctx, cl.ParentPID())
			return c.stop(ctx, cl, progress)
		},
		done: func(got control.Result) string {
			if got.TookSeconds > 0 {
				return fmt.Sprintf("stopped after %s", took(got.TookSeconds))
			}
			return "stopped"
		},
	}.run(r, stdout, stderr)
	if err == nil && r.status == 0 && again.unit != "" {
		_, err = fmt.Fprintf(stderr, "gapless: warning: systemd starts %s again; to stop it for good: %s\n", again.unit, again.stop())
	}
	return err
}

// stop returns when the parent has exited, so that whoever starts the next one finds the port free. The parent may be
// gone before it has said that it is going.
func (c *stopCmd) stop(ctx context.Context, cl *control.Client, progress func(control.Event)) (control.Result, error) {
	// Opened while the parent listens, so that the PID is the parent's and nobody else's.
	parent, perr := pidfd.Open(cl.ParentPID())
	if perr == nil {
		defer parent.Close() //nolint:errcheck // only watched
	}
	got, err := cl.Stop(ctx, control.StopRequest{Now: c.Now}, progress)
	switch {
	case errors.Is(err, control.ErrEnded):
		got = control.Result{OK: true}
	case err != nil || !got.OK:
		return got, err
	}
	if cl.NoWait || perr != nil {
		return got, nil // where the kernel has no pidfds, the parent's word is all there is
	}
	select {
	case <-parent.Done():
		return got, nil
	case <-ctx.Done():
		return control.Result{}, ctx.Err()
	}
}
