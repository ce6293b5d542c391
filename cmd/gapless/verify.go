package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"gapless/internal/logging"
	"gapless/internal/verify"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"
)

// verifyCmd is `gapless verify`: the rolling-upgrade test. It takes the flags of run as well.
type verifyCmd struct {
	Upgrades      int           `env:"-" verb:"" default:"5" placeholder:"N" group:"What is done" help:"How often to upgrade under load; default 5."`
	Fault         []string      `env:"-" verb:"" placeholder:"NAME" group:"What is done" help:"Afterwards, repeatable or with commas: kill-worker, broken-release, kill-master."`
	URL           string        `name:"url" env:"-" verb:"" placeholder:"URL" group:"What is done" help:"Measure the server that runs there instead of starting COMMAND."`
	Deploy        string        `env:"-" verb:"" placeholder:"CMD" group:"What is done" help:"With --url: the shell command that deploys it, --upgrades times."`
	SettleBetween time.Duration `env:"-" verb:"" default:"1s" group:"What is done" help:"Wait at least so long after an upgrade before the next."`
	DeployTimeout time.Duration `env:"-" verb:"" default:"2m" group:"What is done" help:"An upgrade that takes longer has failed."`

	Path           string        `env:"-" verb:"" placeholder:"PATH" group:"The load" help:"What is asked for; default /, and all paths of the built-in app."`
	Method         string        `env:"-" verb:"" placeholder:"METHOD" group:"The load" help:"Default GET."`
	Header         []string      `env:"-" verb:"" sep:"none" placeholder:"'NAME: VALUE'" group:"The load" help:"Repeatable: a header of every request."`
	Body           string        `env:"-" verb:"" placeholder:"TEXT" group:"The load" help:"The body of every request; needs --method."`
	ExpectStatus   int           `env:"-" verb:"" placeholder:"N" group:"The load" help:"The status that every answer must have; default: that of the first answer, which must be below 400."`
	Slow           string        `env:"-" verb:"" placeholder:"PATH" group:"The load" help:"Ask also for this path, whose answer takes a while, so that requests are in flight."`
	WS             string        `name:"ws" env:"-" verb:"" placeholder:"PATH" group:"The load" help:"Keep WebSockets open at this path, too, and ping them."`
	Clients        []string      `env:"-" verb:"" placeholder:"KIND" group:"The load" help:"Only these kinds of clients: keep-alive, new, silent, slow, websocket."`
	Requests       string        `env:"-" verb:"" placeholder:"FILE" group:"The load" help:"A YAML list of requests instead of all these."`
	Rate           float64       `env:"-" verb:"" default:"200" placeholder:"N" group:"The load" help:"Requests per second, of all clients together; default 200."`
	Connections    int           `env:"-" verb:"" default:"16" placeholder:"N" group:"The load" help:"Kept-alive connections of each kind; default 16."`
	Duration       time.Duration `env:"-" verb:"" default:"0s" group:"The load" help:"Spread the upgrades over so much time; 0: 3 s, and 3 s more for each."`
	RTT            time.Duration `name:"rtt" env:"-" verb:"" default:"0s" group:"The load" help:"Emulate clients that are this round trip away."`
	RequestTimeout time.Duration `env:"-" verb:"" default:"10s" group:"The load" help:"A request without an answer by then is dropped."`
	Insecure       bool          `env:"-" verb:"" group:"The load" help:"Do not check the certificate of an https URL."`

	MaxDrops    int           `env:"-" verb:"" default:"0" placeholder:"N" group:"The verdict" help:"Dropped requests that may be; default 0."`
	MaxClosed   int           `env:"-" verb:"" default:"-1" placeholder:"N" group:"The verdict" help:"Idle connections that the server may close; -1: any number, for HTTP lets it."`
	MaxP99Ratio float64       `name:"max-p99-ratio" env:"-" verb:"" default:"0" placeholder:"X" group:"The verdict" help:"So many times the steady p99 may be that around an upgrade; 0: any."`
	MaxLag      time.Duration `env:"-" verb:"" default:"250ms" group:"The verdict" help:"A load generator that is later at the 99th percentile proves nothing."`

	JSON  bool   `name:"json" env:"-" verb:"" group:"The report" help:"Print the report as JSON."`
	JUnit string `name:"junit" env:"-" verb:"" placeholder:"FILE" group:"The report" help:"Write it as a JUnit test suite, too."`
	HTML  string `name:"html" env:"-" verb:"" placeholder:"FILE" group:"The report" help:"Write it as a page with the latency over time, too."`
	Log   string `env:"-" verb:"" placeholder:"FILE" group:"The report" help:"Keep there what gapless and COMMAND print."`

	Flags runCmd `embed:"" group:"Flags of run"`
}

// Help is shown after the flags.
func (verifyCmd) Help() string {
	return `Starts COMMAND under gapless on a free loopback port, drives a mixed load against it, upgrades it again and again
meanwhile, and counts what clients lose. Or, with --url and --deploy, does that with any server.

Exit status: 0 nothing was dropped; 1 something was, or a limit was exceeded; 2 nothing could be measured.

Example: gapless verify -w 4 -- uvicorn main:app --fd {fd}`
}

// Run verifies.
func (c *verifyCmd) Run(r *result, kctx *kong.Context, stdout io.Writer, stderr errWriter) error {
	plan, err := c.plan(kctx)
	if err != nil {
		*r = result{statusUsage, err}
		return nil
	}
	files, err := c.create()
	if err != nil {
		*r = result{statusUsage, err}
		return nil
	}
	defer files.close()
	// A second Ctrl-C ends the verb at once, because stop restores what the signal does by itself.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	show := &verify.Show{Out: stderr.Writer, Terminal: isTerminal(stderr.Writer), Width: func() int { return columns(stderr.Writer) }}
	show.Colour = show.Terminal && os.Getenv("NO_COLOR") == ""
	plan.Progress = func(p verify.Progress) {
		p.Outcome = printable(p.Outcome)
		show.Progress(p)
	}
	rep, err := c.perform(ctx, &plan, kctx, stderr)
	show.End()
	if err != nil {
		var start *verify.StartError
		if ctx.Err() != nil {
			err = errors.New("interrupted: nothing is proved")
		} else if errors.As(err, &start) {
			newProgress(stderr.Writer).tail(start.Tail)
		}
		if rep.Started.IsZero() {
			rep = plan.NotMeasured(err.Error())
		}
		rep.Void(err.Error())
		err = fmt.Errorf("verify: %w", err)
	} else {
		rep.Judge(verify.Limits{Drops: c.MaxDrops, Closed: c.MaxClosed, P99Ratio: c.MaxP99Ratio})
	}
	rep.Version = version
	r.status = rep.Status
	// Of a run that proves nothing the table would only look as if it did; who reads JSON or files finds its status in them.
	if err == nil || c.JSON {
		if failed := c.print(stdout, &rep); failed != nil {
			err = errors.Join(err, fmt.Errorf("verify: %w", failed))
		}
	}
	if failed := files.write(&rep); failed != nil {
		err = errors.Join(err, fmt.Errorf("verify: %w", failed))
	}
	if err != nil {
		*r = result{statusUsage, err}
	}
	return nil
}

// perform runs the plan, with a server of our own unless there is a URL.
func (c *verifyCmd) perform(ctx context.Context, plan *verify.Plan, kctx *kong.Context, stderr io.Writer) (rep verify.Report, err error) {
	if c.URL != "" {
		for range c.Upgrades {
			plan.Acts = append(plan.Acts, verify.DeployBy(c.Deploy))
		}
		return verify.Run(ctx, *plan)
	}
	binary, err := ownPath()
	if err != nil {
		return rep, err
	}
	// Its log is for people: the end of it is shown when it does not start, and --log keeps it.
	args := c.runArgs(kctx.Selected())
	if c.Flags.settings.origins["log-format"].rank == byDefault {
		args = append(args, "--log-format="+logging.Console)
	}
	cfg := verify.ServerConfig{Binary: binary, Args: args, Command: c.command(), Log: c.Log, Start: c.startLimit()}
	if cfg.Gate = verify.NeedsGate(c.faults()); cfg.Gate {
		// What is put before the command hides it from those who would complete it.
		run, err := c.Flags.config()
		if err != nil {
			return rep, err
		}
		cfg.Command = run.Command
		cfg.Args = append(cfg.Args, "--stop-signal="+unix.SignalName(run.StopSignal))
	}
	cfg.Waits = func() {
		fmt.Fprintf(stderr, "waiting for the first generation to be ready (--start-timeout %v)\n", c.Flags.StartTimeout)
	}
	server, err := verify.StartServer(ctx, cfg)
	if err != nil {
		return rep, err
	}
	defer func() {
		if err := server.Stop(); err != nil {
			fmt.Fprintf(stderr, "gapless: verify: %v; the measurement stands\n", err)
		}
	}()
	plan.URL = server.URL
	for range c.Upgrades {
		plan.Acts = append(plan.Acts, server.Upgrade())
	}
	for _, name := range c.faults() {
		act, err := server.Fault(name)
		if err != nil {
			return rep, err
		}
		plan.Acts = append(plan.Acts, act)
	}
	return verify.Run(ctx, *plan)
}

// plan checks the flags and makes what does not need the server.
func (c *verifyCmd) plan(kctx *kong.Context) (verify.Plan, error) {
	p := verify.Plan{
		Deploy: c.Deploy, Duration: c.Duration, SettleBetween: c.SettleBetween, ActTimeout: c.DeployTimeout, Timeout: c.RequestTimeout,
		RTT: c.RTT, MaxLag: c.MaxLag, Insecure: c.Insecure,
	}
	if err := c.check(); err != nil {
		return p, err
	}
	if c.URL != "" {
		u, err := url.Parse(c.URL)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return p, fmt.Errorf("--url: %q is none; write, for example, http://127.0.0.1:8000/", c.URL)
		}
		if c.Path == "" && u.RequestURI() != "/" {
			c.Path = u.RequestURI()
		}
		p.URL, p.Target = u, c.URL
	} else {
		if _, err := c.Flags.config(); err != nil {
			return p, c.Flags.explain(err)
		}
		p.Target = "gapless's own app"
		if command := c.command(); len(command) > 0 {
			p.Target = strings.Join(command, " ")
		}
		p.Insecure = true // the certificate of a server that we have started is whatever it is
	}
	var err error
	p.Streams, err = c.streams()
	return p, err
}

func (c *verifyCmd) streams() ([]verify.Stream, error) {
	m := verify.Mix{
		BuiltIn: c.URL == "" && len(c.command()) == 0, Kinds: commas(c.Clients), Rate: c.Rate, Connections: c.Connections, Method: strings.ToUpper(c.Method),
		Path: c.Path, Body: []byte(c.Body), Status: c.ExpectStatus, Slow: c.Slow, WS: c.WS, Header: http.Header{},
	}
	for _, h := range c.Header {
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			return nil, fmt.Errorf("--header: %q has no colon; write 'NAME: VALUE'", h)
		}
		if err := verify.CheckHeader(name, strings.TrimSpace(value)); err != nil {
			return nil, fmt.Errorf("--header: %w", err)
		}
		m.Header.Add(name, strings.TrimSpace(value))
	}
	if c.Requests != "" {
		all, err := verify.ReadRequests(c.Requests, m)
		if err != nil {
			return nil, fmt.Errorf("--requests: %w", err)
		}
		return all, nil
	}
	all, err := m.Streams()
	if err != nil {
		return nil, fmt.Errorf("--clients: %w", err)
	}
	for _, s := range all {
		if err := s.Validate(); err != nil {
			return nil, fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	return all, nil
}

// check refuses what cannot be meant.
func (c *verifyCmd) check() error {
	switch {
	case c.URL != "" && c.Deploy == "" && c.Upgrades > 0:
		return errors.New("--deploy: is missing: say by which command the server at --url is deployed, or --upgrades 0")
	case c.URL == "" && c.Deploy != "":
		return errors.New("--url: is missing: say where the server answers that --deploy deploys")
	case c.URL != "" && len(c.command()) > 0:
		return errors.New("--url: means a server that runs; leave COMMAND out")
	case c.URL != "" && len(c.Fault) > 0:
		return errors.New("--fault: needs a server that verify starts itself; leave --url out")
	case c.Upgrades < 0:
		return fmt.Errorf("--upgrades: %d is negative; write 0 for none", c.Upgrades)
	case !(c.Rate > 0 && c.Rate <= 1e6):
		return fmt.Errorf("--rate: %g is no rate; write, for example, 200", c.Rate)
	case c.Connections < 1 || c.Connections > 20000:
		return fmt.Errorf("--connections: %d is no number of connections; write 1 to 20000", c.Connections)
	case c.Body != "" && (c.Method == "" || strings.EqualFold(c.Method, http.MethodGet)):
		return errors.New("--body: needs --method POST, or another that carries one")
	case c.ExpectStatus != 0 && (c.ExpectStatus < 200 || c.ExpectStatus > 599):
		return fmt.Errorf("--expect-status: %d is no status of an answer", c.ExpectStatus)
	case c.Requests != "" && (c.Path != "" || c.Method != "" || c.Body != "" || c.Slow != "" || c.WS != "" || len(c.Clients) > 0 || c.ExpectStatus != 0):
		return errors.New("--requests: says all itself; leave --path, --method, --body, --expect-status, --slow, --ws and --clients out")
	case c.MaxDrops < 0:
		return fmt.Errorf("--max-drops: %d is negative; write 0 for none", c.MaxDrops)
	case c.MaxClosed < -1:
		return fmt.Errorf("--max-closed: %d is negative; write 0 for none, or -1 for any number", c.MaxClosed)
	case c.MaxP99Ratio != 0 && !(c.MaxP99Ratio >= 1 && c.MaxP99Ratio <= 1e6):
		return fmt.Errorf("--max-p99-ratio: %g is no limit; write, for example, 3 for three times the steady p99, or 0 for none", c.MaxP99Ratio)
	case c.MaxP99Ratio > 0 && c.Upgrades == 0 && len(c.Fault) == 0:
		return errors.New("--max-p99-ratio: compares upgrades with steady state; leave --upgrades 0 out")
	}
	for _, d := range []struct {
		flag  string
		value time.Duration
		zero  bool
	}{
		{"--settle-between", c.SettleBetween, true}, {"--duration", c.Duration, true}, {"--rtt", c.RTT, true},
		{"--deploy-timeout", c.DeployTimeout, false}, {"--request-timeout", c.RequestTimeout, false}, {"--max-lag", c.MaxLag, false},
	} {
		if d.value < 0 || d.value == 0 && !d.zero {
			return fmt.Errorf("%s: %v is too short; write a duration such as 10s", d.flag, d.value)
		}
	}
	for _, f := range c.faults() {
		if !slices.Contains(verify.Faults(), f) {
			return fmt.Errorf("--fault: %q is none; choose among %s", f, strings.Join(verify.Faults(), ", "))
		}
	}
	return nil
}

func (c *verifyCmd) faults() []string { return commas(c.Fault) }

// commas splits what may be given with commas or repeatedly.
func commas(texts []string) []string {
	var all []string
	for _, t := range texts {
		for _, one := range strings.Split(t, ",") {
			if one = strings.TrimSpace(one); one != "" {
				all = append(all, one)
			}
		}
	}
	return all
}

func (c *verifyCmd) command() []string {
	if len(c.Flags.Command) > 0 && c.Flags.Command[0] == "--" {
		return c.Flags.Command[1:]
	}
	return c.Flags.Command
}

func (c *verifyCmd) print(stdout io.Writer, rep *verify.Report) error {
	if !c.JSON {
		return rep.WriteText(stdout)
	}
	enc := json.NewEncoder(stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(rep)
}
