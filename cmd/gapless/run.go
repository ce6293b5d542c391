package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gapless/internal/cgroup"
	"gapless/internal/known"
	"gapless/internal/logging"
	"gapless/lifecycle"
	"gapless/workerpool"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

// The default of --host and --port, as uvicorn's.
const (
	defaultHost = "127.0.0.1"
	defaultPort = 8000
)

// runCmd is `gapless run`. A master parses the same command line as its parent did.
type runCmd struct {
	Config string `placeholder:"FILE" help:"A YAML file with the same names; flags beat variables (GAPLESS_WORKERS), which beat the file. Read anew by every upgrade and reload."`

	Listen []string `group:"Listening" placeholder:"[NAME=]ADDR" sep:"none" help:"Repeatable: :8000, 10.0.0.1:80, [::]:443, unix:/run/app.sock, or fd:NAME for a socket from systemd."`
	Host   string   `group:"Listening" placeholder:"HOST" help:"With --port, short for one --listen; default 127.0.0.1."`
	Port   *int     `group:"Listening" placeholder:"PORT" help:"The port; default 8000, 0 lets the kernel choose."`
	Accept string   `group:"Listening" enum:"steered,shared" default:"steered" help:"steered: each worker has its own share of new connections; shared: a generation's workers take them from one queue, for servers that handle one connection at a time."`

	Workers string   `group:"Workers" short:"w" placeholder:"N" env:"GAPLESS_WORKERS,WEB_CONCURRENCY" default:"1" help:"Worker processes; default 1, or $$WEB_CONCURRENCY; auto: as many as there are usable CPUs."`
	Chdir   string   `group:"Workers" placeholder:"DIR" help:"Where the workers run; resolved anew by every upgrade."`
	EnvFile []string `group:"Workers" placeholder:"PATH" sep:"none" help:"Repeatable. Variables for the workers, read anew by every upgrade and reload."`
	User    string   `group:"Workers" type:"user" placeholder:"USER" help:"The workers' user, by name or number."`
	Group   string   `group:"Workers" placeholder:"GROUP" help:"The workers' group, by name or number."`
	Umask   string   `group:"Workers" placeholder:"OCTAL" help:"The workers' umask."`
	NoFile  string   `group:"Workers" name:"nofile" placeholder:"N" help:"The workers' limit on open files; default: as many as are allowed."`
	Adapter string   `group:"Workers" enum:"auto,off" default:"auto" help:"auto: servers that are known (uvicorn, node) get a file of ours that lets them hand their idle connections over; off: they do not."`

	Ready        string        `group:"Readiness" default:"auto" placeholder:"MODE" help:"How a worker counts as ready: auto, notify, log=REGEX, delay=DURATION or http=/PATH; default auto."`
	StartTimeout time.Duration `group:"Readiness" default:"60s" help:"A generation that is not ready by then fails, and the upgrade is aborted; 0: no limit."`

	BeforeStart        []string      `group:"Upgrades" placeholder:"CMD" sep:"none" help:"Repeatable. A previous step: run by sh once per generation before its workers; a failure aborts it."`
	BeforeStartTimeout time.Duration `group:"Upgrades" default:"0s" help:"For the previous steps together; 0: no limit."`
	AfterPromote       []string      `group:"Upgrades" placeholder:"CMD" sep:"none" help:"Repeatable. Run by sh once after an upgrade, when the last worker of older generations is gone; a failure undoes nothing."`
	Preview            string        `group:"Upgrades" placeholder:"[NAME=]ADDR" help:"An address whose connections reach the staged generation, and the one in charge while none is staged; NAME is the listener that is previewed, by default the first."`
	Keep               time.Duration `group:"Upgrades" default:"0s" help:"Keep the old generation whole for so long after a new one got everything: within this window gapless rollback is instant, and a release that fails is rolled back by itself."`
	Probation          time.Duration `group:"Upgrades" default:"60s" help:"A release whose workers die sooner is reported as bad."`
	Surge              int           `group:"Upgrades" default:"1" placeholder:"N" help:"Extra workers at a time during a reload; default 1."`

	StopSignal   string        `group:"Draining and stopping" default:"TERM" placeholder:"SIG" help:"What asks a worker to drain; default TERM."`
	Settle       time.Duration `group:"Draining and stopping" default:"2s" help:"At most this long a draining worker waits for accepted connections to be read before its stop signal."`
	DrainTimeout time.Duration `group:"Draining and stopping" default:"30s" help:"After it, what still drains is killed; 0: no limit."`
	DrainExtra   time.Duration `group:"Draining and stopping" default:"0s" help:"What a worker that knows gapless may take beyond it while bytes still move."`
	CloseSpread  time.Duration `group:"Draining and stopping" default:"0s" help:"The time before the end of a drain over which such a worker spreads the closing of its WebSockets."`
	LameDuck     time.Duration `group:"Draining and stopping" default:"0s" help:"After TERM or INT: not ready any more by --health, but serving on for so long before the drain."`

	MaxWorkerMemory   string        `group:"Limits of a worker" placeholder:"SIZE" help:"A worker that occupies more is replaced: 512MiB, 2GB, or bytes."`
	MaxWorkerLifetime time.Duration `group:"Limits of a worker" default:"0s" help:"A worker that is older is replaced, spread by a tenth; 0: no limit."`
	Watchdog          time.Duration `group:"Limits of a worker" default:"0s" help:"A worker that is silent (once it has sent WATCHDOG=1) or accepts no connection for so long is replaced; 0: never."`

	Control string `group:"Control" placeholder:"PATH" help:"The control socket; default: named after the first listener, in $$XDG_RUNTIME_DIR/gapless, /run/gapless as root, else $$TMPDIR/gapless-UID."`
	PIDFile string `group:"Control" name:"pid-file" placeholder:"PATH" help:"Where to write the parent's PID."`
	Health  string `group:"Control" placeholder:"ADDR" help:"Where /livez and /readyz are answered, such as :8081."`

	LogFormat string `group:"Output" enum:"console,json,auto" default:"auto" help:"console or json; auto: console on a terminal, else json."`
	LogPrefix bool   `group:"Output" help:"Put each worker's number and generation before its lines; what it prints then goes through gapless."`
	LogLevel  string `group:"Output" enum:"debug,info,warn,error" default:"info" help:"debug, info, warn or error."`

	Command []string `arg:"" optional:"" passthrough:"partial" help:"The command; {fd}, {fd:NAME}, {worker} and {generation} in it are replaced. Without it the built-in app runs."`

	settings settings `kong:"-"`
}

// Help is shown after the flags.
func (runCmd) Help() string {
	return `Signals to the parent: USR2 upgrades, HUP reloads, TERM and INT drain and end, a second one or QUIT ends at once.
Every flag is a variable too (--drain-timeout: GAPLESS_DRAIN_TIMEOUT) and a key of the --config file (drain-timeout).

Examples:

  gapless run -w 4 main.py      (a FastAPI application, under uvicorn)
  gapless run -w 4 server.js    (under node)
  gapless run -w 4 --port 8000 -- uvicorn main:app --fd {fd}
  gapless run --config gapless.yaml`
}

// Run runs as the parent, or as the master that a parent or another master has started.
func (c *runCmd) Run(r *result) error {
	cfg, err := c.config()
	if err != nil {
		*r = result{statusUsage, c.explain(err)}
		return nil
	}
	cfg.Banner = cfg.LogFormat == logging.Console
	log, err := newLogger(cfg)
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }() // what it says of itself is that nobody listens
	if lifecycle.IsMaster() {
		*r = masterResult(lifecycle.RunMaster(cfg, c.reread, log))
		return nil
	}
	binary, err := ownPath()
	if err != nil {
		return err
	}
	r.status, r.err = lifecycle.RunParent(lifecycle.ParentConfig{
		Binary: binary, Args: os.Args[1:], DrainTimeout: cfg.DrainTimeout, PIDFile: cfg.PIDFile,
		Version: version, Control: cfg.Control, Listener: cfg.Addresses[0].String(), Health: c.Health, LameDuck: c.LameDuck,
	}, log)
	return nil
}

func masterResult(err error) result {
	switch {
	case err == nil:
		return result{}
	case errors.Is(err, lifecycle.ErrReported):
		return result{status: statusFailed}
	}
	return result{statusFailed, err}
}

// takePlace runs the master in place of a dead one. The command line and the configuration file are parsed only when
// something asks for what they say now: that they are broken by now must not keep a server without a master.
func takePlace() result {
	reread := func() (lifecycle.Config, error) {
		var fresh cli
		parser, err := newParser(&fresh, io.Discard, io.Discard, func(int) {})
		if err == nil {
			_, err = parser.Parse(os.Args[1:])
		}
		if err != nil {
			return lifecycle.Config{}, err
		}
		cfg, err := fresh.Run.config()
		return cfg, fresh.Run.explain(err)
	}
	log := zap.NewNop()
	defer func() { _ = log.Sync() }()
	return masterResult(lifecycle.ResumeMaster(version, reread, func(cfg lifecycle.Config) (*zap.Logger, error) {
		l, err := newLogger(cfg)
		if err == nil {
			log = l
		}
		return l, err
	}))
}

func newLogger(cfg lifecycle.Config) (*zap.Logger, error) {
	level, err := zapcore.ParseLevel(cfg.LogLevel)
	if err != nil {
		return nil, err
	}
	return logging.New(cfg.LogFormat, level), nil
}

// ownPath returns the absolute path by which gapless was started, with symbolic links left in it: what it leads to at
// the time of an upgrade is what the upgrade takes.
func ownPath() (string, error) {
	path, err := exec.LookPath(os.Args[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return "", fmt.Errorf("find the gapless binary for upgrades: %w; start it by its path", err)
	}
	return filepath.Abs(path)
}

// config checks what the parser cannot and translates the flags.
func (c *runCmd) config() (lifecycle.Config, error) {
	cfg := lifecycle.Config{
		Version: version, Command: c.Command, Chdir: c.Chdir, Settle: c.Settle, StartTimeout: c.StartTimeout,
		DrainTimeout: c.DrainTimeout, DrainExtra: c.DrainExtra, CloseSpread: c.CloseSpread, Keep: c.Keep,
		BeforeStart: c.BeforeStart, BeforeStartTimeout: c.BeforeStartTimeout, AfterPromote: c.AfterPromote, User: c.User, Group: c.Group, PIDFile: c.PIDFile,
		MaxLifetime: c.MaxWorkerLifetime, Surge: c.Surge, Probation: c.Probation, Watchdog: c.Watchdog, EnvFiles: c.EnvFile, Control: c.Control, LogPrefix: c.LogPrefix,
		LogFormat: c.LogFormat, LogLevel: c.LogLevel, Adapter: c.Adapter,
	}
	if cfg.LogFormat == "auto" {
		cfg.LogFormat = logging.DefaultFormat()
	}
	if len(cfg.Command) > 0 && cfg.Command[0] == "--" {
		cfg.Command = cfg.Command[1:]
	}
	if err := cfg.Accept.UnmarshalText([]byte(c.Accept)); err != nil {
		return cfg, fmt.Errorf("--accept: %w", err)
	}
	var err error
	if cfg.Workers, err = parseWorkers(c.Workers); err != nil {
		return cfg, err
	}
	if cfg.Addresses, err = c.addresses(); err != nil {
		return cfg, err
	}
	if err := c.complete(&cfg); err != nil {
		return cfg, err
	}
	if _, err := healthAddress(c.Health); err != nil {
		return cfg, fmt.Errorf("--health: %w", err)
	}
	if cfg.Preview, err = lifecycle.ParsePreview(c.Preview, cfg.Addresses); err != nil {
		return cfg, fmt.Errorf("--preview: %w", err)
	}
	if err := lifecycle.CheckPlaceholders(cfg.Command, cfg.Addresses); err != nil {
		return cfg, err
	}
	if cfg.Readiness, err = workerpool.ParseReadiness(c.Ready); err != nil {
		return cfg, fmt.Errorf("--ready: %w", err)
	}
	if cfg.StopSignal == 0 {
		cfg.StopSignal = unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(c.StopSignal), "SIG"))
	}
	if cfg.StopSignal == 0 ||
		cfg.StopSignal == syscall.SIGKILL || cfg.StopSignal == syscall.SIGSTOP {
		return cfg, fmt.Errorf("--stop-signal: %q is no signal that a worker could act on; write TERM, INT or QUIT", c.StopSignal)
	}
	if cfg.MaxMemory, err = parseSize(c.MaxWorkerMemory); err != nil {
		return cfg, fmt.Errorf("--max-worker-memory: %w", err)
	}
	if cfg.MaxMemory > 0 && cfg.MaxMemory < leastSize {
		return cfg, fmt.Errorf("--max-worker-memory: %q is %d bytes, and every worker occupies more; write, for example, 512MiB", c.MaxWorkerMemory, cfg.MaxMemory)
	}
	if c.User == bareUser {
		return cfg, errors.New("--user: it has no value; write the name or number of a user")
	}
	if cfg.Surge < 1 {
		return cfg, fmt.Errorf("--surge: %d is no number of extra workers; write 1 or more", cfg.Surge)
	}
	if c.NoFile != "" && c.NoFile != "max" {
		if cfg.NoFile, err = strconv.ParseUint(c.NoFile, 10, 32); err != nil || cfg.NoFile == 0 {
			return cfg, fmt.Errorf("--nofile: %q is no limit; write a number, or max", c.NoFile)
		}
	}
	if c.Umask != "" {
		n, err := strconv.ParseUint(c.Umask, 8, 12)
		if err != nil || n > 0o777 {
			return cfg, fmt.Errorf("--umask: %q is no octal mask; write, for example, 027", c.Umask)
		}
		mask := int(n)
		cfg.Umask = &mask
	}
	for _, d := range []struct {
		flag  string
		value time.Duration
	}{
		{"--settle", c.Settle}, {"--start-timeout", c.StartTimeout}, {"--drain-timeout", c.DrainTimeout}, {"--drain-extra", c.DrainExtra},
		{"--close-spread", c.CloseSpread}, {"--keep", c.Keep}, {"--max-worker-lifetime", c.MaxWorkerLifetime}, {"--probation", c.Probation}, {"--lame-duck", c.LameDuck}, {"--watchdog", c.Watchdog}, {"--before-start-timeout", c.BeforeStartTimeout},
	} {
		if d.value < 0 {
			return cfg, fmt.Errorf("%s: %v is negative; write a duration such as 30s", d.flag, d.value)
		}
	}
	return cfg, nil
}

// complete makes the command of what the user wrote, where it names a server or a program that is known.
func (c *runCmd) complete(cfg *lifecycle.Config) error {
	dir := cfg.Chdir
	if dir == "" {
		var err error
		if dir, err = os.Getwd(); err != nil {
			return err
		}
	}
	cmd, err := known.Complete(cfg.Command, dir, cfg.Addresses[0].Addr, os.Getenv)
	if err != nil {
		return err
	}
	cfg.Command, cfg.Notes, cfg.Blocking = cmd.Args, cmd.Notes, cmd.Blocking
	if cmd.StopSignal != "" && c.StopSignal == "TERM" {
		cfg.StopSignal = unix.SignalNum("SIG" + cmd.StopSignal)
	}
	return nil
}

func parseWorkers(text string) (int, error) {
	text = strings.TrimPrefix(text, "=") // -w=4
	switch text {
	case "": // WEB_CONCURRENCY= is as good as none
		return 1, nil
	case "auto":
		return cgroup.Reader{}.CPUs(), nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > 4096 {
		return 0, fmt.Errorf("--workers: %q is no number of processes; write 1 to 4096, or auto", text)
	}
	return n, nil
}

// sizes are the units of --max-worker-memory, the longer names first.
var sizes = []struct {
	unit  string
	bytes float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {"B", 1}, {"", 1},
}

// leastSize is that of the smallest process: less is a size whose unit was forgotten.
const leastSize = 1 << 20

// parseSize reads a size in bytes; "" is 0.
func parseSize(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	for _, s := range sizes {
		if number, ok := strings.CutSuffix(text, s.unit); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
			if err != nil || !(v*s.bytes >= 1 && v*s.bytes <= 1<<60) {
				break
			}
			return int64(v * s.bytes), nil
		}
	}
	return 0, fmt.Errorf("%q is no size; write, for example, 512MiB", text)
}
