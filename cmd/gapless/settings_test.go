package main

import (
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"gapless/lifecycle"

	"github.com/alecthomas/kong"
)

// parsed parses a command line that must be good.
func parsed(t *testing.T, args ...string) (*cli, *kong.Context) {
	t.Helper()
	var c cli
	parser, err := newParser(&c, io.Discard, io.Discard, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	kctx, err := parser.Parse(args)
	if err != nil {
		t.Fatal(err)
	}
	return &c, kctx
}

func fileOf(t *testing.T, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "g.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSettings_FlagsBeatEnvironmentBeatsFile(t *testing.T) {
	file := fileOf(t, "workers: 2\nsettle: 3s\nlisten: [':1']\nsurge: 4\naccept: shared\nlog-prefix: true\nbefore-start: [a, b]\ncommand: [x, y]\n")
	for _, tt := range []struct {
		name    string
		env     map[string]string
		args    []string
		setting string
		value   func(*runCmd) any
		want    any
		from    string
	}{
		{name: "the file", setting: "workers", value: func(c *runCmd) any { return c.Workers }, want: "2", from: "g.yaml:1"},
		{name: "a duration in the file", setting: "settle", value: func(c *runCmd) any { return c.Settle }, want: 3 * time.Second, from: "g.yaml:2"},
		{name: "a list in the file", setting: "before-start", value: func(c *runCmd) any { return c.BeforeStart }, want: []string{"a", "b"}, from: "g.yaml:7"},
		{name: "a number in the file", setting: "surge", value: func(c *runCmd) any { return c.Surge }, want: 4, from: "g.yaml:4"},
		{name: "a switch in the file", setting: "log-prefix", value: func(c *runCmd) any { return c.LogPrefix }, want: true, from: "g.yaml:6"},
		{name: "the environment over the file", env: map[string]string{"GAPLESS_WORKERS": "5"}, setting: "workers", value: func(c *runCmd) any { return c.Workers }, want: "5", from: "GAPLESS_WORKERS"},
		{name: "the file over another program's variable", env: map[string]string{"WEB_CONCURRENCY": "5"}, setting: "workers", value: func(c *runCmd) any { return c.Workers }, want: "2", from: "g.yaml:1"},
		{name: "a flag over the file", args: []string{"-w", "7"}, setting: "workers", value: func(c *runCmd) any { return c.Workers }, want: "7", from: "--workers"},
		{name: "a flag over both", env: map[string]string{"GAPLESS_SETTLE": "5s"}, args: []string{"--settle=9s"}, setting: "settle", value: func(c *runCmd) any { return c.Settle }, want: 9 * time.Second, from: "--settle"},
		{name: "a flag's list replaces the file's", args: []string{"--before-start", "c"}, setting: "before-start", value: func(c *runCmd) any { return c.BeforeStart }, want: []string{"c"}, from: "--before-start"},
		{name: "an enumeration in the file", setting: "accept", value: func(c *runCmd) any { return c.Accept }, want: "shared", from: "g.yaml:5"},
		{name: "a default", setting: "probation", value: func(c *runCmd) any { return c.Probation }, want: time.Minute, from: "default"},
		{name: "a switch that the environment turns off", env: map[string]string{"GAPLESS_LOG_PREFIX": "false"}, setting: "log-prefix", value: func(c *runCmd) any { return c.LogPrefix }, want: false, from: "GAPLESS_LOG_PREFIX"},
		{name: "the file's command", setting: "command", value: func(c *runCmd) any { return c.Command }, want: []string{"x", "y"}, from: "g.yaml:8"},
		{name: "the command line's command", args: []string{"--", "z"}, setting: "command", value: func(c *runCmd) any { return c.Command[len(c.Command)-1] }, want: "z", from: "command line"},
		{name: "the file's listeners", setting: "listen", value: func(c *runCmd) any { return c.Listen }, want: []string{":1"}, from: "g.yaml:3"},
		{name: "--port over the file's listeners", args: []string{"--port", "9"}, setting: "listen", value: func(c *runCmd) any { return len(c.Listen) + *c.Port }, want: 9, from: "default"},
		{name: "--listen over GAPLESS_PORT", env: map[string]string{"GAPLESS_PORT": "9"}, args: []string{"--listen", ":2"}, setting: "port", value: func(c *runCmd) any { return c.Listen }, want: []string{":2"}, from: "default"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			for _, verb := range []string{"run", "check"} {
				c, _ := parsed(t, append([]string{verb, "--config", file}, tt.args...)...)
				cmd := &c.Run
				if verb == "check" {
					cmd = &c.Check.Flags
				}
				if got := tt.value(cmd); !reflect.DeepEqual(got, tt.want) {
					t.Errorf("%s: got %v, want %v", verb, got, tt.want)
				}
				if got := filepath.Base(cmd.settings.origins[tt.setting].text); got != tt.from {
					t.Errorf("%s: %s is said to come from %q, want %q", verb, tt.setting, got, tt.from)
				}
			}
		})
	}
}

func TestSettings_TheEnvironmentNamesTheFile(t *testing.T) {
	t.Setenv("GAPLESS_CONFIG", fileOf(t, "workers: 6\n"))
	if c, _ := parsed(t, "run"); c.Run.Workers != "6" {
		t.Errorf("workers are %s, want the file's 6", c.Run.Workers)
	}
	if c, _ := parsed(t, "run", "--config", fileOf(t, "workers: 7\n")); c.Run.Workers != "7" {
		t.Errorf("workers are %s, want the 7 of the file that the flag names", c.Run.Workers)
	}
}

func TestCheck_PrintsAFileThatMeansTheSame(t *testing.T) {
	args := []string{"-w", "auto", "--listen", "api=:8001", "--listen", "unix:/tmp/a b.sock", "--ready", `log=a: "b" #c`, "--umask", "027", "--settle", "90m",
		"--max-worker-memory", "512MiB", "--before-start", "echo 'x: y' # z", "--log-prefix", "--user", "1000", "--", "sh", "-c", "true\n{fd}", "1.50", "yes", "--w"}
	c, kctx := parsed(t, append([]string{"check"}, args...)...)
	text := c.Check.Flags.effective(kctx.Selected())
	for l := range strings.Lines(text) {
		if !strings.Contains(l, "  # ") {
			t.Errorf("%q does not say where the setting comes from", l)
		}
	}
	again, _ := parsed(t, "check", "--config", fileOf(t, text))
	want, err := c.Check.Flags.config()
	if err != nil {
		t.Fatal(err)
	}
	got, err := again.Check.Flags.config()
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the file means\n%+v, and not\n%+v:\n%s", got, want, text)
	}
}

// TestExample_HoldsTheDefaults fails when a flag is added, or its default changed, without the example.
func TestExample_HoldsTheDefaults(t *testing.T) {
	const path = "../../docs/gapless.example.yaml"
	meaning := func(args ...string) (lifecycle.Config, runCmd) {
		c, _ := parsed(t, append([]string{"run"}, args...)...)
		cfg, err := c.Run.config()
		if err != nil {
			t.Fatal(err)
		}
		bare := c.Run
		bare.Config, bare.settings, bare.Host, bare.Port = "", settings{}, "", nil
		return cfg, bare
	}
	wantCfg, wantFlags := meaning()
	gotCfg, gotFlags := meaning("--config", path)
	if !reflect.DeepEqual(gotCfg, wantCfg) || !reflect.DeepEqual(gotFlags, wantFlags) {
		t.Errorf("the example means\n%+v\n%+v\nand the defaults are\n%+v\n%+v", gotCfg, gotFlags, wantCfg, wantFlags)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	c, kctx := parsed(t, "run", "--config", path)
	for name := range keys(kctx.Selected()) {
		written := regexp.MustCompile(`(?m)^(# )?` + name + `: \S`).FindStringSubmatch(text)
		if written == nil {
			t.Errorf("the example does not show %s", name)
			continue
		}
		if _, set := c.Run.settings.file.Settings[name]; set == (written[1] != "") {
			t.Errorf("the example shows %s both set and commented out", name)
		}
	}
	// What is commented out is good, too. The two ways to say where to listen exclude each other.
	text = regexp.MustCompile(`(?m)^(host|port):.*\n`).ReplaceAllString(text, "")
	text = regexp.MustCompile(`(?m)^# ([a-z-]+: \S)`).ReplaceAllStringFunc(text, func(l string) string {
		if name, _, _ := strings.Cut(l[2:], ":"); isKey(kctx.Selected(), name) {
			return l[2:]
		}
		return l
	})
	all, _ := parsed(t, "run", "--config", fileOf(t, text))
	if _, err := all.Run.config(); err != nil {
		t.Errorf("with everything set: %v", err)
	}
	if got, want := len(all.Run.settings.file.Settings), len(keys(kctx.Selected()))-2; got != want {
		t.Errorf("%d settings are set, want %d", got, want)
	}
}

func isKey(node *kong.Node, name string) bool {
	_, ok := keys(node)[name]
	return ok
}
