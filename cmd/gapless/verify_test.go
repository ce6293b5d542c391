package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gapless/internal/verify"

	"github.com/alecthomas/kong"
	"github.com/goccy/go-yaml"
)

// parseVerify parses a command line of verify as it would be run.
func parseVerify(t *testing.T, args ...string) (*verifyCmd, *kong.Context, error) {
	t.Helper()
	var c cli
	parser, err := newParser(&c, os.Stdout, os.Stderr, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	kctx, err := parser.Parse(append([]string{"verify"}, args...))
	return &c.Verify, kctx, err
}

// What cannot be meant is wrong usage, in one line, before anything has begun.
func TestVerify_WrongUsage(t *testing.T) {
	tests := []struct {
		args string
		want string
	}{
		{"--upgrades -1", "--upgrades"},
		{"--rate 0", "--rate"},
		{"--connections 0", "--connections"},
		{"--rtt -1s", "--rtt"},
		{"--request-timeout 0s", "--request-timeout"},
		{"--max-lag 0s", "--max-lag"},
		{"--max-drops -1", "--max-drops"},
		{"--max-drops none", "--max-drops"},
		{"--max-closed -2", "--max-closed"},
		{"--max-p99-ratio -1", "--max-p99-ratio"},
		{"--max-p99-ratio 0.5", "--max-p99-ratio"},
		{"--max-p99-ratio nan", "--max-p99-ratio"},
		{"--max-p99-ratio inf", "--max-p99-ratio"},
		{"--max-p99-ratio x3", "--max-p99-ratio"},
		{"--max-p99-ratio 3 --upgrades 0", "--max-p99-ratio"},
		{"--max-lag 5", "--max-lag"},
		{"--rate nan", "--rate"},
		{"--rate x", "--rate"},
		{"--fault kill-everybody", "--fault"},
		{"--fault kill-worker --url http://127.0.0.1:1 --deploy true", "--fault"},
		{"--url http://127.0.0.1:1", "--deploy"},
		{"--deploy true", "--url"},
		{"--url ftp://127.0.0.1 --deploy true", "--url"},
		{"--url http://127.0.0.1:1 --deploy true -- server", "--url"},
		{"--body x", "--body"},
		{"--path x", "path"},
		{"--method GE/T", "method"},
		{"--header X", "--header"},
		{"--header Connection:close", "--header"},
		{"--expect-status 20", "--expect-status"},
		{"--clients fast", "--clients"},
		{"--requests missing.yaml", "--requests"},
		{"--requests missing.yaml --path /", "--requests"},
		{"--junit /nonexistent/x.xml", "--junit"},
		{"--html /nonexistent/x.html", "--html"},
		{"-w 0", "--workers"},
		{"--ready never", "--ready"},
		{"--json=maybe", "json"},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			status := run(append([]string{"verify"}, strings.Fields(tt.args)...), &stdout, &stderr)
			text := stderr.String()
			if status != statusUsage || stdout.Len() > 0 || strings.Count(text, "\n") != 1 || !strings.Contains(text, tt.want) {
				t.Errorf("status %d, %q, %q", status, stdout.String(), text)
			}
		})
	}
}

// The gapless that is started gets what the command line says of run, and nothing of verify.
func TestVerify_RunArgs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gapless.yaml")
	if err := os.WriteFile(file, []byte("surge: 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	withPort := filepath.Join(t.TempDir(), "gapless.yaml")
	if err := os.WriteFile(withPort, []byte("port: 4711\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		args []string
		want []string
	}{
		{"nothing", nil, []string{"--port=0"}},
		{"flags of both", []string{"-w", "4", "--rate", "50", "--settle", "1s", "--log-prefix", "--json", "--", "server", "-w", "9"},
			[]string{"--log-prefix=true", "--port=0", "--settle=1s", "--workers=4"}},
		{"lists", []string{"--env-file", "a", "--env-file", "b,c", "--before-start", "make x"}, []string{"--before-start=make x", "--env-file=a", "--env-file=b,c", "--port=0"}},
		{"a port", []string{"--port", "4711"}, []string{"--port=4711"}},
		{"a listener", []string{"--listen", "web=127.0.0.1:0"}, []string{"--listen=web=127.0.0.1:0"}},
		{"a file", []string{"--config", file}, []string{"--config=" + file, "--port=0"}},
		{"a file with a port", []string{"--config", withPort}, []string{"--config=" + withPort}},
		{"what verify sets itself", []string{"--control", "/tmp/x.sock", "--pid-file", "/tmp/x.pid"}, []string{"--port=0"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, kctx, err := parseVerify(t, tt.args...)
			if err != nil {
				t.Fatal(err)
			}
			got := c.runArgs(kctx.Selected())
			slices.Sort(got)
			if !slices.Equal(got, tt.want) {
				t.Errorf("%q, want %q", got, tt.want)
			}
			// It must be a command line of run that means the same.
			var again cli
			parser, err := newParser(&again, os.Stdout, os.Stderr, func(int) {})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parser.Parse(append([]string{"run"}, got...)); err != nil {
				t.Errorf("run does not take it: %v", err)
			}
		})
	}
}

// Each flag of verify stands in the documentation, and none hides one of run.
func TestVerify_FlagsStandInTheDocumentation(t *testing.T) {
	text, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	_, kctx, err := parseVerify(t)
	if err != nil {
		t.Fatal(err)
	}
	node := kctx.Selected()
	for _, f := range node.Flags {
		if f.Name == "help" || slices.Contains(runFlags(node), f) {
			continue
		}
		if !strings.Contains(string(text), "`--"+f.Name+" ") && !strings.Contains(string(text), "`--"+f.Name+"`") {
			t.Errorf("--%s does not stand in docs/cli.md", f.Name)
		}
		if len(f.Envs) > 0 {
			t.Errorf("--%s can be set by %v: a variable of run's must not change a test", f.Name, f.Envs)
		}
	}
}

// The examples for CI systems are YAML, and their command lines are good.
func TestVerify_ExamplesForCI(t *testing.T) {
	texts, err := filepath.Glob("../../examples/ci/*.y*ml")
	if err != nil || len(texts) < 3 {
		t.Fatalf("%v, %v", texts, err)
	}
	commands := 0
	for _, path := range texts {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Base(path) == "requests.yaml" {
			if _, err := verify.ParseRequests(text, verify.Mix{}); err != nil {
				t.Errorf("%s: %v", path, err)
			}
			continue
		}
		var doc map[string]any
		if err := yaml.Unmarshal(text, &doc); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for _, line := range textsIn(doc) {
			_, rest, ok := strings.Cut(line, "bin/gapless verify ")
			if !ok {
				continue
			}
			commands++
			args := strings.Fields(rest)
			if i := slices.Index(args, "ci/requests.yaml"); i >= 0 {
				args[i] = "../../examples/ci/requests.yaml"
			}
			c, kctx, err := parseVerify(t, args...)
			if err == nil {
				_, err = c.plan(kctx)
			}
			if err != nil || c.JUnit == "" || !slices.Equal(c.command(), []string{"bin/server"}) {
				t.Errorf("%s: %v in %s", path, err, line)
			}
		}
	}
	if commands != 2 {
		t.Errorf("%d command lines, want one for each system", commands)
	}
}

// textsIn are all texts in a document.
func textsIn(v any) []string {
	var all []string
	switch v := v.(type) {
	case string:
		all = append(all, v)
	case []any:
		for _, x := range v {
			all = append(all, textsIn(x)...)
		}
	case map[string]any:
		for _, x := range v {
			all = append(all, textsIn(x)...)
		}
	}
	return all
}
