package main

import (
	"fmt"
	"io"
	"time"

	"gapless/internal/deadlines"

	"github.com/alecthomas/kong"
)

// checkCmd is `gapless check`: run, without running.
type checkCmd struct {
	For   string        `env:"-" verb:"" enum:"kubernetes,systemd," default:"" placeholder:"PLATFORM" help:"kubernetes or systemd: warn about limits of time that contradict its own."`
	Grace time.Duration `env:"-" verb:"" placeholder:"D" help:"What that platform gives a stop: terminationGracePeriodSeconds or TimeoutStopSec; default: what it does by itself."`

	Flags runCmd `embed:""`
}

// Help is shown after the flags.
func (checkCmd) Help() string {
	return "Prints the settings in the form of a configuration file. Exit status: 0 they are good; 2 they are not. What --for warns of does not change it."
}

// Run checks.
func (c *checkCmd) Run(r *result, kctx *kong.Context, stdout io.Writer, stderr errWriter) error {
	cfg, err := c.Flags.config()
	switch {
	case err != nil:
		*r = result{statusUsage, c.Flags.explain(err)}
		return nil
	case c.Grace < 0:
		*r = result{statusUsage, fmt.Errorf("--grace: %v is negative; write a duration such as 60s", c.Grace)}
		return nil
	case c.Grace > 0 && c.For == "":
		*r = result{statusUsage, fmt.Errorf("--grace: of what? add --for kubernetes or --for systemd")}
		return nil
	}
	if c.For != "" {
		for _, w := range deadlines.Warnings(deadlines.Platform(c.For), limitsOf(cfg, kctx.Selected()), c.Grace) {
			if _, err := fmt.Fprintf(stderr, "gapless: warning: %s\n", w); err != nil {
				return err
			}
		}
	}
	_, err = io.WriteString(stdout, c.Flags.effective(kctx.Selected()))
	return err
}
