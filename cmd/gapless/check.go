package main

import (
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"

	"gapless/internal/deadlines"
	"gapless/lifecycle"

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
	return "Prints the settings in the form of a configuration file, and in comments what each worker would be. Nothing is started and no address opened. " +
		"Exit status: 0 they are good; 1 this machine lacks what they name, such as the command; 2 they cannot be meant. What --for warns of does not change it."
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
	plan, err := lifecycle.Check(cfg)
	if err != nil {
		*r = result{statusFailed, c.Flags.explain(err)}
		return nil
	}
	if c.For != "" {
		for _, w := range deadlines.Warnings(deadlines.Platform(c.For), limitsOf(cfg, kctx.Selected()), c.Grace) {
			if _, err := fmt.Fprintf(stderr, "gapless: warning: %s\n", w); err != nil {
				return err
			}
		}
	}
	_, err = io.WriteString(stdout, c.Flags.effective(kctx.Selected())+planText(plan))
	return err
}

// planText says what each worker would be, in comments: what is known of a command has been added to it by then.
func planText(p lifecycle.Plan) string {
	var b strings.Builder
	if p.Path == "" {
		b.WriteString("# runs: the built-in app\n")
	} else {
		words := make([]string, len(p.Args))
		for i, arg := range p.Args {
			words[i] = shellWord(arg)
		}
		fmt.Fprintf(&b, "# runs: %s\n# program: %s\n", strings.Join(words, " "), printable(p.Path))
	}
	fmt.Fprintf(&b, "# in: %s\n", printable(p.Dir))
	if p.UID != nil {
		fmt.Fprintf(&b, "# uid: %d\n", *p.UID)
	}
	if p.GID != nil {
		fmt.Fprintf(&b, "# gid: %d\n", *p.GID)
	}
	return b.String()
}

// bareWord is what a shell takes as it is; placeholders are left bare, too, as run and its users write them.
var bareWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./{}-]+$`)

// shellWord writes an argument as it would be typed, in one line.
func shellWord(arg string) string {
	if bareWord.MatchString(arg) {
		return arg
	}
	if printable(arg) != arg {
		return strconv.Quote(arg)
	}
	return "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
}
