// Command gapless runs a server as worker processes on one port, and replaces the manager and every worker with what is
// now on disk, without a refused connection or a lost request. See docs/ and `gapless --help`.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"gapless/internal/app"
	"gapless/internal/execstep"
	"gapless/internal/logging"
	"gapless/internal/procfs"
	"gapless/lifecycle"

	"github.com/alecthomas/kong"
	"go.uber.org/zap/zapcore"
)

// version is set by the linker.
var version = "0.1.0-dev"

// The exit statuses; they are a contract (cli.md).
const (
	statusOK     = 0
	statusFailed = 1
	statusUsage  = 2
)

// cli is the grammar of the command line: one field, and one file, for each verb.
type cli struct {
	Run       runCmd       `cmd:"" help:"Run COMMAND (or the built-in app) as worker processes, in the foreground."`
	Status    statusCmd    `cmd:"" help:"Show what runs: generations, workers, memory, connections."`
	Upgrade   upgradeCmd   `cmd:"" help:"Replace gapless and every worker with what is on disk, and wait until they are in charge."`
	Shift     shiftCmd     `cmd:"" help:"Give a staged generation a share of new connections."`
	Promote   promoteCmd   `cmd:"" help:"Have a staged generation take over."`
	Abort     abortCmd     `cmd:"" help:"Take a staged generation down."`
	Rollback  rollbackCmd  `cmd:"" help:"Give everything back to the generation before, within the window of --keep."`
	Reload    reloadCmd    `cmd:"" help:"Replace the workers one by one."`
	Scale     scaleCmd     `cmd:"" help:"Change the number of workers."`
	Stop      stopCmd      `cmd:"" help:"Drain and end everything."`
	Unit      unitCmd      `cmd:"" help:"Print a systemd unit for the flags of run."`
	Install   installCmd   `cmd:"" help:"Install, enable and start such a unit."`
	Uninstall uninstallCmd `cmd:"" help:"Stop and remove it."`
	Verify    verifyCmd    `cmd:"" help:"Drive real load through repeated upgrades and count what clients lose."`
	Check     checkCmd     `cmd:"" help:"Check the flags of run and the configuration file, and print what they come to."`
	Version   versionCmd   `cmd:"" help:"Print the version."`
}

// result is a verb's outcome: the exit status, and what to tell a person.
type result struct {
	status int
	err    error
}

// errWriter is where a verb tells what is not its answer.
type errWriter struct{ io.Writer }

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is the whole program; only main exits.
func run(args []string, stdout, stderr io.Writer) int {
	r := execute(args, stdout, stderr)
	if r.status == statusUsage && lifecycle.ReportFailure(r.err) {
		// A new master whose configuration file is broken: the master in charge tells it to whoever asked for the upgrade.
		r.err = nil
	}
	return r.report(stderr)
}

func execute(args []string, stdout, stderr io.Writer) result {
	if r, ok := hidden(args, stderr); ok {
		return r
	}
	if lifecycle.TakesPlace() {
		return takePlace()
	}
	exited := -1
	parser, err := newParser(grammar(), stdout, stderr, func(status int) { exited = status })
	if err != nil {
		return result{statusFailed, err}
	}
	args = asVerbs(args)
	ctx, err := parser.Parse(args)
	if exited >= 0 { // --help has been answered
		return result{status: exited}
	}
	if isFileError(err) {
		return result{statusUsage, err}
	}
	if err != nil {
		return result{statusUsage, usage(parser, args, err)}
	}
	var r result
	ctx.BindTo(stdout, (*io.Writer)(nil))
	ctx.Bind(errWriter{stderr})
	if err := ctx.Run(&r); err != nil && r.err == nil {
		r = result{statusFailed, err}
	}
	return r
}

// grammar is what this process parses. A master is always the verb run, and to build the parser for all the others takes
// a tenth of a new master's start.
func grammar() any {
	if lifecycle.IsMaster() {
		return new(struct {
			Run runCmd `cmd:""`
		})
	}
	return new(cli)
}

// newParser makes the parser of a grammar. It calls exit where kong thinks that the program should end.
func newParser(grammar any, stdout, stderr io.Writer, exit func(int)) (*kong.Kong, error) {
	return kong.New(grammar,
		kong.Name("gapless"),
		kong.Description("A server process manager whose deploys nobody can notice."),
		kong.DefaultEnvars("GAPLESS"),
		valueMappers(),
		kong.NamedMapper("user", kong.MapperFunc(decodeUser)),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.ValueFormatter(func(v *kong.Value) string { return v.Help }), // every variable is named after its flag, which run's help says once
		kong.Writers(stdout, stderr),
		kong.Exit(exit),
	)
}

// reportPatience is how long an end waits for a place that does not take its reason.
const reportPatience = time.Second

// report prints the error, if there is one, as one line. A pipe that nobody reads does not keep the process from its end.
func (r result) report(stderr io.Writer) int {
	if r.err != nil {
		printed := make(chan struct{})
		go func() {
			defer close(printed)
			fmt.Fprintf(stderr, "gapless: %v\n", r.err)
		}()
		select {
		case <-printed:
		case <-time.After(reportPatience):
		}
		if r.status == statusOK {
			return statusFailed
		}
	}
	return r.status
}

// hidden runs the verbs that gapless calls itself by. They are looked for before anything else: a worker's start should
// not wait for a parser, and what follows them is not ours to parse.
func hidden(args []string, stderr io.Writer) (result, bool) {
	if len(args) == 0 {
		return result{}, false
	}
	switch args[0] {
	case execstep.Verb:
		rest := args[1:]
		if len(rest) > 0 && rest[0] == "--" {
			rest = rest[1:]
		}
		err := execstep.Main(rest)
		if !errors.Is(err, execstep.ErrNoStep) {
			return result{status: 126}, true // the reason went to the master
		}
		return result{statusUsage, err}, true
	case "app":
		if err := execstep.Here(); err != nil {
			return result{status: 126}, true // as above
		}
		return result{err: app.Main(args[1:], stderr)}, true
	case "relay":
		// It is this binary too, so that its start takes the step inside, as the app's does.
		if err := execstep.Here(); err != nil {
			return result{status: 126}, true
		}
		log := logging.New(logging.DefaultFormat(), zapcore.InfoLevel)
		defer func() { _ = log.Sync() }()
		return result{err: lifecycle.RunRelay(log)}, true
	case "probe":
		return result{err: procfs.ProbeMain(os.Stdin, os.Stdout)}, true
	}
	return result{}, false
}

type versionCmd struct{}

func (versionCmd) Run(stdout io.Writer) error {
	_, err := fmt.Fprintln(stdout, "gapless", version)
	return err
}
