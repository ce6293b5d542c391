package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"gapless/internal/control"
	"gapless/lifecycle"
)

// upgradeCmd is `gapless upgrade`.
type upgradeCmd struct {
	Client clientFlags `embed:""`
	Wait   waitFlags   `embed:""`

	WaitDrained   bool          `env:"-" xor:"wait" help:"Wait also until the old generation is gone."`
	Stage         bool          `env:"-" help:"Have the new generation wait, ready, beside the old one, without new connections: see shift, promote, abort."`
	Weights       []int         `env:"-" placeholder:"P,P,..." help:"With --stage: give it these percentages of new connections one after the other, and then promote it."`
	Bake          time.Duration `env:"-" placeholder:"D" help:"With --weights: how long it has each."`
	Verify        []string      `env:"-" sep:"none" placeholder:"CMD" help:"With --stage, repeatable: run by sh while it is staged, at each share and before it takes over, with GAPLESS_PREVIEW_ADDR, GAPLESS_GENERATION and GAPLESS_WEIGHT set; a failure aborts it."`
	VerifyHTTP    []string      `name:"verify-http" env:"-" sep:"none" placeholder:"PATH[=STATUS]" help:"With --stage, repeatable: ask the new generation alone for the path then; a status of 400 or more, or another than STATUS, aborts it."`
	VerifyProbes  int           `env:"-" default:"20" placeholder:"N" help:"How often it is asked at each step."`
	Preview       string        `env:"-" placeholder:"[NAME=]ADDR" help:"With --stage: an address whose connections reach the new generation alone, open until it is promoted, and its window over, or aborted; NAME is the listener that is previewed, by default the first."`
	VerifyTimeout time.Duration `env:"-" default:"0s" placeholder:"D" help:"A verification that takes longer has failed; 0: no limit."`

	Keep *time.Duration `env:"-" placeholder:"D" help:"Keep the old generation whole for so long after the new one got everything, for rollback; default: as run --keep says."`
}

// Help is shown after the flags.
func (upgradeCmd) Help() string {
	return "Exit status: 0 the new generation is in charge, or staged, or in its window; 1 aborted, and the old one serves on; 2 wrong usage; 3 nothing runs; " + goesOn
}

// Run upgrades.
func (c *upgradeCmd) Run(r *result, stdout io.Writer, stderr errWriter) error {
	if err := c.check(); err != nil {
		*r = result{statusUsage, err}
		return nil //nolint:nilerr // the result tells
	}
	return operation{
		flags: c.Client, wait: c.Wait, name: "upgrade", begun: "upgrade begun",
		do: func(ctx context.Context, cl *control.Client, progress func(control.Event)) (control.Result, error) {
			req := control.UpgradeRequest{WaitDrained: c.WaitDrained, Stage: c.Stage, Weights: c.Weights,
				BakeSeconds: c.Bake.Seconds(), KeepSeconds: keepSeconds(c.Keep),
				Preview: c.Preview, Verify: c.Verify, VerifyHTTP: c.VerifyHTTP, VerifyTimeoutSeconds: c.VerifyTimeout.Seconds()}
			if len(c.VerifyHTTP) > 0 {
				req.VerifyProbes = c.VerifyProbes
			}
			return cl.Upgrade(ctx, req, progress)
		},
		done: func(got control.Result) string {
			what := "is in charge"
			switch {
			case got.State != "":
				return stands(got)
			case c.WaitDrained:
				what = "is in charge alone"
			}
			return fmt.Sprintf("generation %d %s after %s", got.Generation, what, took(got.TookSeconds))
		},
	}.run(r, stdout, stderr)
}

// check refuses what makes no sense together, before anybody is asked.
func (c *upgradeCmd) check() error {
	before := 0
	for _, w := range c.Weights {
		if w < 1 || w > 100 || w <= before {
			return fmt.Errorf("--weights: %v are no steps; write percentages from 1 to 100, each greater than the one before: 5,25,50", c.Weights)
		}
		before = w
	}
	switch {
	case len(c.Weights) > 0 && !c.Stage:
		return errors.New("--weights: they are for a staged upgrade; add --stage")
	case c.Bake != 0 && len(c.Weights) == 0:
		return errors.New("--bake: there is nothing to bake; add --weights")
	case c.Bake < 0:
		return fmt.Errorf("--bake: %v is negative; write a duration such as 30s", c.Bake)
	case len(c.Verify) > 0 && !c.Stage:
		return errors.New("--verify: only a staged generation can be verified; add --stage")
	case len(c.VerifyHTTP) > 0 && !c.Stage:
		return errors.New("--verify-http: only a staged generation can be verified; add --stage")
	case c.Preview != "" && !c.Stage:
		return errors.New("--preview: only a staged generation can be previewed; add --stage, or give --preview to gapless run")
	case c.VerifyProbes < 1 || c.VerifyProbes > control.MaxProbes:
		return fmt.Errorf("--verify-probes: %d is no number of requests; write 1 to %d", c.VerifyProbes, control.MaxProbes)
	case c.VerifyTimeout < 0:
		return fmt.Errorf("--verify-timeout: %v is negative; write a duration such as 30s", c.VerifyTimeout)
	}
	for _, text := range c.VerifyHTTP {
		if err := lifecycle.CheckVerifyHTTP(text); err != nil {
			return fmt.Errorf("--verify-http: %w", err)
		}
	}
	if _, err := lifecycle.ParsePreview(c.Preview, nil); err != nil {
		return fmt.Errorf("--preview: %w", err)
	}
	return checkKeep(c.Keep)
}
