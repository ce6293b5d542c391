package main

import (
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gapless/internal/adapter"
	"gapless/internal/logging"
	"gapless/lifecycle"
	"gapless/upgrade"
	"gapless/workerpool"

	"github.com/alecthomas/kong"
)

// configOf parses `gapless run ARGS` and translates it. parsed is false when the parser refused.
func configOf(t *testing.T, args ...string) (cfg lifecycle.Config, parsed bool, err error) {
	t.Helper()
	for _, kv := range os.Environ() { // the environment of whoever runs the tests must not count
		if name, _, _ := strings.Cut(kv, "="); name == "WEB_CONCURRENCY" || strings.HasPrefix(name, "GAPLESS_") {
			t.Setenv(name, "")
			os.Unsetenv(name)
		}
	}
	return parse(t, args...)
}

func parse(t *testing.T, args ...string) (cfg lifecycle.Config, parsed bool, err error) {
	t.Helper()
	var c struct {
		Run runCmd `cmd:""`
	}
	p, err := kong.New(&c, kong.Name("gapless"), kong.DefaultEnvars("GAPLESS"), kong.Writers(io.Discard, io.Discard), kong.Exit(func(int) {}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Parse(append([]string{"run"}, args...)); err != nil {
		return cfg, false, err
	}
	cfg, err = c.Run.config()
	return cfg, true, err
}

func addresses(t *testing.T, texts ...string) (addrs []upgrade.Address) {
	t.Helper()
	for _, text := range texts {
		a, err := upgrade.ParseAddress(text)
		if err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, a)
	}
	named, err := upgrade.NameAddresses(addrs)
	if err != nil {
		t.Fatal(err)
	}
	return named
}

func TestRun_Defaults(t *testing.T) {
	cfg, _, err := configOf(t)
	if err != nil {
		t.Fatal(err)
	}
	want := lifecycle.Config{
		Version: version, Workers: 1, Addresses: addresses(t, "127.0.0.1:8000"), Settle: 2 * time.Second, StartTimeout: time.Minute,
		DrainTimeout: 30 * time.Second, StopSignal: syscall.SIGTERM, Surge: 1, Probation: time.Minute,
		LogFormat: logging.DefaultFormat(), LogLevel: "info", Adapter: adapter.Auto,
	}
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("got  %+v\nwant %+v", cfg, want)
	}
}

func TestRun_Flags(t *testing.T) {
	umask := 0o27
	dir := t.TempDir()
	for _, tc := range []struct {
		args string // separated by spaces
		want func(c *lifecycle.Config)
	}{
		{"-w 4", func(c *lifecycle.Config) { c.Workers = 4 }},
		{"--workers=4096", func(c *lifecycle.Config) { c.Workers = 4096 }},
		{"--port 9000", func(c *lifecycle.Config) { c.Addresses = addresses(t, "127.0.0.1:9000") }},
		{"--port 0", func(c *lifecycle.Config) { c.Addresses = addresses(t, "127.0.0.1:0") }},
		{"--host 0.0.0.0", func(c *lifecycle.Config) { c.Addresses = addresses(t, "0.0.0.0:8000") }},
		{"--host ::1 --port 80", func(c *lifecycle.Config) { c.Addresses = addresses(t, "[::1]:80") }},
		{"--host [::1]", func(c *lifecycle.Config) { c.Addresses = addresses(t, "[::1]:8000") }},
		{"--listen :8000 --listen admin=127.0.0.1:9000 --listen unix:/run/app.sock", func(c *lifecycle.Config) {
			c.Addresses = addresses(t, ":8000", "admin=127.0.0.1:9000", "unix:/run/app.sock")
		}},
		{"--listen unix:/run/a,b.sock", func(c *lifecycle.Config) { c.Addresses = addresses(t, "unix:/run/a,b.sock") }},
		{"--accept shared", func(c *lifecycle.Config) { c.Accept = upgrade.ModeShared }},
		{"--accept steered", func(*lifecycle.Config) {}},
		{"--preview 127.0.0.1:9000", func(c *lifecycle.Config) {
			c.Preview = upgrade.Address{Name: "web", Network: upgrade.NetworkTCP, Addr: "127.0.0.1:9000"}
		}},
		{"--listen unix:/run/app.sock --listen api=:81 --preview api=:9000", func(c *lifecycle.Config) {
			c.Addresses = addresses(t, "unix:/run/app.sock", "api=:81")
			c.Preview = upgrade.Address{Name: "api", Network: upgrade.NetworkTCP, Addr: "[::]:9000"}
		}},
		{"--ready notify", func(c *lifecycle.Config) { c.Readiness.Mode = workerpool.ReadyNotify }},
		{"--ready delay=2s", func(c *lifecycle.Config) {
			c.Readiness = workerpool.Readiness{Mode: workerpool.ReadyDelay, Delay: 2 * time.Second}
		}},
		{"--ready http=/up", func(c *lifecycle.Config) { c.Readiness = workerpool.Readiness{Mode: workerpool.ReadyHTTP, Path: "/up"} }},
		{"--adapter off", func(c *lifecycle.Config) { c.Adapter = adapter.Off }},
		{"--settle 0s", func(c *lifecycle.Config) { c.Settle = 0 }},
		{"--start-timeout 5m", func(c *lifecycle.Config) { c.StartTimeout = 5 * time.Minute }},
		{"--drain-timeout 0s", func(c *lifecycle.Config) { c.DrainTimeout = 0 }},
		{"--drain-extra 10s --close-spread 5s", func(c *lifecycle.Config) { c.DrainExtra, c.CloseSpread = 10*time.Second, 5*time.Second }},
		{"--stop-signal QUIT", func(c *lifecycle.Config) { c.StopSignal = syscall.SIGQUIT }},
		{"--stop-signal sigint", func(c *lifecycle.Config) { c.StopSignal = syscall.SIGINT }},
		{"--before-start a,b --before-start c", func(c *lifecycle.Config) { c.BeforeStart = []string{"a,b", "c"} }},
		{"--after-promote a,b --after-promote c", func(c *lifecycle.Config) { c.AfterPromote = []string{"a,b", "c"} }},
		{"--before-start-timeout 9s", func(c *lifecycle.Config) { c.BeforeStartTimeout = 9 * time.Second }},
		{"--max-worker-memory 512MiB", func(c *lifecycle.Config) { c.MaxMemory = 512 << 20 }},
		{"--max-worker-lifetime 1h", func(c *lifecycle.Config) { c.MaxLifetime = time.Hour }},
		{"--surge 3", func(c *lifecycle.Config) { c.Surge = 3 }},
		{"--probation 0s", func(c *lifecycle.Config) { c.Probation = 0 }},
		{"--watchdog 10s", func(c *lifecycle.Config) { c.Watchdog = 10 * time.Second }},
		{"--chdir " + dir, func(c *lifecycle.Config) { c.Chdir = dir }},
		{"--user www --group 33", func(c *lifecycle.Config) { c.User, c.Group = "www", "33" }},
		{"--umask 027", func(c *lifecycle.Config) { c.Umask = &umask }},
		{"--umask 27", func(c *lifecycle.Config) { c.Umask = &umask }},
		{"--nofile 4096", func(c *lifecycle.Config) { c.NoFile = 4096 }},
		{"--nofile max", func(*lifecycle.Config) {}},
		{"--env-file a --env-file b,c", func(c *lifecycle.Config) { c.EnvFiles = []string{"a", "b,c"} }},
		{"--control /run/x.sock", func(c *lifecycle.Config) { c.Control = "/run/x.sock" }},
		{"--pid-file /run/x.pid", func(c *lifecycle.Config) { c.PIDFile = "/run/x.pid" }},
		{"-- server main:app --fd {fd} --workers 2 -- x", func(c *lifecycle.Config) {
			c.Command = []string{"server", "main:app", "--fd", "{fd}", "--workers", "2", "--", "x"}
		}},
		{"-w 2 -- server -w 7", func(c *lifecycle.Config) { c.Workers, c.Command = 2, []string{"server", "-w", "7"} }},
	} {
		t.Run(tc.args, func(t *testing.T) {
			got, _, err := configOf(t, strings.Fields(tc.args)...)
			if err != nil {
				t.Fatal(err)
			}
			want, _, err := configOf(t)
			if err != nil {
				t.Fatal(err)
			}
			tc.want(&want)
			if len(got.Command) == 0 && len(want.Command) == 0 {
				got.Command, want.Command = nil, nil
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
	cfg, _, err := configOf(t, "--ready", "log=^up (\\d+)$")
	if err != nil || cfg.Readiness.Mode != workerpool.ReadyLog || cfg.Readiness.Line.String() != "^up (\\d+)$" {
		t.Errorf("--ready log: %+v, %v", cfg.Readiness, err)
	}
}

func TestRun_WorkersFromTheEnvironment(t *testing.T) {
	for _, tc := range []struct {
		name string
		env  map[string]string
		args []string
		want int
		err  string
	}{
		{"WEB_CONCURRENCY", map[string]string{"WEB_CONCURRENCY": "3"}, nil, 3, ""},
		{"an empty one", map[string]string{"WEB_CONCURRENCY": ""}, nil, 1, ""},
		{"our own first", map[string]string{"WEB_CONCURRENCY": "3", "GAPLESS_WORKERS": "5"}, nil, 5, ""},
		{"the flag beats both", map[string]string{"WEB_CONCURRENCY": "3", "GAPLESS_WORKERS": "5"}, []string{"-w", "2"}, 2, ""},
		{"nonsense", map[string]string{"WEB_CONCURRENCY": "many"}, nil, 0, `"many" is no number of processes`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, name := range []string{"WEB_CONCURRENCY", "GAPLESS_WORKERS"} {
				t.Setenv(name, "")
				os.Unsetenv(name)
			}
			for name, value := range tc.env {
				t.Setenv(name, value)
			}
			cfg, _, err := parse(t, tc.args...)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil || cfg.Workers != tc.want {
				t.Errorf("%d workers, %v; want %d", cfg.Workers, err, tc.want)
			}
		})
	}
	if cfg, _, err := configOf(t, "-w", "auto"); err != nil || cfg.Workers < 1 || cfg.Workers > runtime.NumCPU() {
		t.Errorf("auto is %d, %v", cfg.Workers, err)
	}
}

// Every refusal names the flag and the mend.
func TestRun_Refuses(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want []string
	}{
		{[]string{"-w", "0"}, []string{`--workers: "0" is no number of processes; write 1 to 4096, or auto`}},
		{[]string{"-w", "-1"}, []string{"workers"}},
		{[]string{"-w", "4097"}, []string{"--workers: ", "4096"}},
		{[]string{"-w", "four"}, []string{`--workers: "four"`}},
		{[]string{"--port", "65536"}, []string{"--port: 65536 is no port; write 1 to 65535, or 0 for any that is free"}},
		{[]string{"--port=-1"}, []string{"--port: -1 is no port"}},
		{[]string{"--port", "http"}, []string{"--port", `"http"`}},
		{[]string{"--listen", ":80", "--port", "80"}, []string{"--listen: cannot be combined with --host and --port; write one more --listen instead"}},
		{[]string{"--listen", ":80", "--host", "::"}, []string{"--listen: cannot be combined"}},
		{[]string{"--listen", "nonsense"}, []string{"--listen: ", "nonsense"}},
		{[]string{"--listen", "a=:80", "--listen", "a=:81"}, []string{"--listen: ", "a"}},
		{[]string{"--preview", "nonsense"}, []string{"--preview: ", "nonsense"}},
		{[]string{"--preview", "unix:/run/p.sock"}, []string{"--preview: unix:/run/p.sock is no TCP address; write, for example, 127.0.0.1:9000"}},
		{[]string{"--preview", "api=:9000"}, []string{`--preview: no --listen is called "api"; the names are web`}},
		{[]string{"--port", "9000", "--preview", "127.0.0.1:9000"}, []string{"--preview: 127.0.0.1:9000 is a --listen as well; choose another port"}},
		{[]string{"--listen", "unix:/run/app.sock", "--preview", ":9000"}, []string{"--preview: the listener web is a unix socket", "NAME=ADDR"}},
		{[]string{"--accept", "both"}, []string{"--accept", `"both"`}},
		{[]string{"--ready", "soon"}, []string{`--ready: "soon" is none of auto`}},
		{[]string{"--ready", "log=("}, []string{`--ready: "(" is no regular expression`}},
		{[]string{"--stop-signal", "KILL"}, []string{`--stop-signal: "KILL" is no signal that a worker could act on; write TERM, INT or QUIT`}},
		{[]string{"--stop-signal", "STOP"}, []string{"--stop-signal: "}},
		{[]string{"--stop-signal", "15"}, []string{`--stop-signal: "15"`}},
		{[]string{"--umask", "8"}, []string{`--umask: "8" is no octal mask; write, for example, 027`}},
		{[]string{"--umask", "1000"}, []string{`--umask: "1000"`}},
		{[]string{"--nofile", "0"}, []string{`--nofile: "0" is no limit; write a number, or max`}},
		{[]string{"--nofile", "lots"}, []string{`--nofile: "lots"`}},
		{[]string{"--surge", "0"}, []string{"--surge: 0 is no number of extra workers; write 1 or more"}},
		{[]string{"--max-worker-memory", "much"}, []string{`--max-worker-memory: "much" is no size; write, for example, 512MiB`}},
		{[]string{"--settle", "5"}, []string{"--settle", "5"}},
		{[]string{"--settle=-1s"}, []string{"--settle: -1s is negative; write a duration such as 30s"}},
		{[]string{"--start-timeout=-1s"}, []string{"--start-timeout: -1s is negative"}},
		{[]string{"--drain-timeout=-1s"}, []string{"--drain-timeout: -1s is negative"}},
		{[]string{"--drain-extra=-1s"}, []string{"--drain-extra: -1s is negative"}},
		{[]string{"--close-spread=-1s"}, []string{"--close-spread: -1s is negative"}},
		{[]string{"--before-start-timeout=-1s"}, []string{"--before-start-timeout: -1s is negative"}},
		{[]string{"--max-worker-lifetime=-1s"}, []string{"--max-worker-lifetime: -1s is negative"}},
		{[]string{"--probation=-1s"}, []string{"--probation: -1s is negative"}},
		{[]string{"--watchdog=-1s"}, []string{"--watchdog: -1s is negative"}},
		{[]string{"--log-format", "xml"}, []string{"--log-format", `"xml"`}},
		{[]string{"--log-level", "loud"}, []string{"--log-level", `"loud"`}},
		{[]string{"--no-such-flag"}, []string{"--no-such-flag"}},
	} {
		t.Run(strings.Join(tc.args, " "), func(t *testing.T) {
			cfg, _, err := configOf(t, tc.args...)
			if err == nil {
				t.Fatalf("accepted: %+v", cfg)
			}
			for _, part := range tc.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q lacks %q", err, part)
				}
			}
			if strings.ContainsRune(err.Error(), '\n') {
				t.Errorf("%q is more than one line", err)
			}
		})
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"": 0, "1": 1, "100B": 100, "1K": 1024, "1KiB": 1024, "1KB": 1000, "512MiB": 512 << 20, "2GB": 2e9, "1.5G": 3 << 29, "2 MiB": 2 << 20, "1M": 1 << 20, "3MB": 3e6,
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%q is %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"0", "-1", "-1MiB", "x", "MiB", "1TiB?", "NaN", "inf", "1e30", "1 2", "0.1"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q is accepted as %d", text, got)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"1", "2GB", "1.5 GiB", "1e9", "0x1p10", "inf", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := parseSize(text)
		if err == nil && (n < 0 || n > 1<<60 || n == 0 && text != "") {
			t.Errorf("%q is %d", text, n)
		}
	})
}

func TestRun_StatusesOfTheProgram(t *testing.T) {
	for _, tc := range []struct {
		name   string
		args   []string
		status int
		stdout string
		stderr []string
	}{
		{"version", []string{"version"}, statusOK, "gapless " + version + "\n", nil},
		{"help", []string{"--help"}, statusOK, "Usage: gapless", nil},
		{"no verb", nil, statusUsage, "", []string{"gapless: ", "see gapless --help"}},
		{"an unknown verb", []string{"frobnicate"}, statusUsage, "", []string{"frobnicate"}},
		{"an unknown flag", []string{"run", "--nope"}, statusUsage, "", []string{"--nope", "see gapless run --help"}},
		{"a bad value", []string{"run", "-w", "0"}, statusUsage, "", []string{`gapless: --workers: "0"`}},
		{"the exec step by hand", []string{"exec-worker", "--", "sh"}, statusUsage, "", []string{"not for calling by hand"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var stdout, stderr strings.Builder
			if got := run(tc.args, &stdout, &stderr); got != tc.status {
				t.Errorf("status %d, want %d; stderr %q", got, tc.status, stderr.String())
			}
			if !strings.HasPrefix(stdout.String(), tc.stdout) || tc.stdout == "" && stdout.Len() > 0 {
				t.Errorf("stdout %q, want %q", stdout.String(), tc.stdout)
			}
			for _, part := range tc.stderr {
				if !strings.Contains(stderr.String(), part) {
					t.Errorf("stderr %q lacks %q", stderr.String(), part)
				}
			}
			if tc.status != statusOK && strings.Count(stderr.String(), "\n") != 1 {
				t.Errorf("stderr is not one line: %q", stderr.String())
			}
		})
	}
}

func TestOwnPath_KeepsLinks(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "gapless")
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	old := slices.Clone(os.Args)
	defer func() { os.Args = old }()
	os.Args = []string{link}
	if got, err := ownPath(); err != nil || got != link {
		t.Errorf("got %s, %v", got, err)
	}
	os.Args = []string{filepath.Join(dir, "gone")}
	if _, err := ownPath(); err == nil || !strings.Contains(err.Error(), "start it by its path") {
		t.Errorf("got %v", err)
	}
}
