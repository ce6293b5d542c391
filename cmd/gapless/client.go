package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"gapless/internal/control"
)

// The exit statuses of the verbs that speak to a running gapless.
const (
	statusNotRunning = 3 // it was not found
	statusUndecided  = 4 // it has begun what it was asked for, and the verb waits no longer: what comes of it is not known
)

// goesOn ends the list of exit statuses in the help of a verb that waits.
const goesOn = "4 it goes on, and nobody waits any more (--timeout, Ctrl-C)."

// clientFlags say which gapless a verb speaks to.
type clientFlags struct {
	Control string  `placeholder:"PATH" help:"The control socket; without any of these flags, the one gapless of this user."`
	PIDFile *string `name:"pid-file" env:"-" placeholder:"PATH" help:"The file with its parent's PID."`
	Port    *int    `env:"-" placeholder:"PORT" help:"A port that it listens at."`
	Listen  *string `env:"-" placeholder:"ADDR" help:"Its first listener, as in run --listen."`
}

// waitFlags are those of the verbs that wait for an outcome.
type waitFlags struct {
	NoWait  bool          `env:"-" xor:"wait" help:"Return as soon as it has begun."`
	Timeout time.Duration `env:"-" placeholder:"D" help:"Wait for the outcome at most this long; then the status is 4, and it goes on. 0: no limit."`
}

// operation is a verb that changes something.
type operation struct {
	flags clientFlags
	wait  waitFlags
	name  string // in messages: "upgrade"
	begun string // the answer with --no-wait
	// gentle says that a failure is no threat to what serves, and need not say what becomes of that.
	gentle bool
	do     func(context.Context, *control.Client, func(control.Event)) (control.Result, error)
	done   func(control.Result) string // the answer
}

// run runs the verb: what happens goes to stderr, the answer to stdout.
func (o operation) run(r *result, stdout io.Writer, stderr errWriter) error {
	if o.wait.Timeout < 0 {
		*r = result{statusUsage, fmt.Errorf("--timeout: %v is negative; write a duration such as 30s", o.wait.Timeout)}
		return nil
	}
	// A second Ctrl-C ends the verb at once, because stop restores what the signal does by itself.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if o.wait.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.wait.Timeout)
		defer cancel()
	}
	c, failed := o.flags.find(ctx)
	if failed != nil {
		*r = *failed
		return nil
	}
	c.NoWait = o.wait.NoWait
	p := newProgress(stderr.Writer)
	got, err := o.do(ctx, c, p.show)
	p.end()
	switch {
	case err == nil && got.OK && o.wait.NoWait:
		_, err = fmt.Fprintln(stdout, o.begun)
		return err
	case err == nil && got.OK:
		_, err = fmt.Fprintln(stdout, o.done(got))
		return err
	case err == nil && got.Invalid:
		*r = result{statusUsage, fmt.Errorf("%s: %s; nothing was begun", o.name, printable(got.Reason))}
	case err == nil:
		p.tail(got.Tail)
		*r = result{statusFailed, o.refusal(got)}
	case errors.Is(err, context.DeadlineExceeded):
		*r = result{statusUndecided, fmt.Errorf("%s: no outcome after %v; it goes on: gapless status --watch shows how", o.name, o.wait.Timeout)}
	case errors.Is(err, context.Canceled):
		*r = result{statusUndecided, fmt.Errorf("%s: interrupted; it goes on: gapless status --watch shows how", o.name)}
	case errors.Is(err, control.ErrNotRunning):
		*r = result{statusNotRunning, fmt.Errorf("%s: %w", o.name, err)}
	case errors.Is(err, control.ErrNoMaster):
		*r = result{statusFailed, fmt.Errorf("%s: %w; the workers serve, and a new master is on its way: try again", o.name, err)}
	default:
		*r = result{statusFailed, err}
	}
	return nil
}

func (o operation) refusal(got control.Result) error {
	reason := printable(got.Reason)
	switch {
	case got.Busy && reason != "":
		return fmt.Errorf("%s: busy: %s; nothing was begun: try again later", o.name, reason)
	case got.Busy:
		return fmt.Errorf("%s: busy: another operation is under way; nothing was begun: try again later", o.name)
	case reason == "":
		reason = "no reason was given; see the log of gapless"
	}
	if o.gentle {
		return fmt.Errorf("%s failed: %s", o.name, reason)
	}
	return fmt.Errorf("%s failed, and what served before serves on: %s", o.name, reason)
}

// took says how long something took, for people.
func took(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d >= time.Minute:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Millisecond).String()
}
