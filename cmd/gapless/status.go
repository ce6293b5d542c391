package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"gapless/internal/control"
)

// watchInterval is how often --watch asks.
const watchInterval = time.Second

// statusCmd is `gapless status`.
type statusCmd struct {
	Client clientFlags `embed:""`

	JSON  bool `name:"json" env:"-" help:"The answer of the control API, as JSON."`
	Watch bool `env:"-" help:"Show it again each second until it ends."`
}

// Help is shown after the flags.
func (statusCmd) Help() string {
	return "Exit status: 0 it runs; 1 it does not answer; 3 nothing runs."
}

// Run shows what runs.
func (c *statusCmd) Run(r *result, stdout io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cl, failed := c.Client.find(ctx)
	if failed != nil {
		*r = *failed
		return nil
	}
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		st, err := cl.Status(ctx)
		switch {
		case err != nil && ctx.Err() != nil:
			return nil
		case errors.Is(err, control.ErrNotRunning):
			*r = result{statusNotRunning, err}
			return nil
		case err != nil:
			*r = result{statusFailed, fmt.Errorf("status: %w", err)}
			return nil
		}
		if err := c.show(stdout, st); err != nil || !c.Watch {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (c *statusCmd) show(w io.Writer, st control.Status) error {
	if c.JSON {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		if !c.Watch { // one line for each when there are many
			enc.SetIndent("", "  ")
		}
		return enc.Encode(st)
	}
	text := statusText(st, time.Now())
	if c.Watch && isTerminal(w) {
		text = "\x1b[H\x1b[2J" + text
	}
	_, err := io.WriteString(w, text)
	return err
}
