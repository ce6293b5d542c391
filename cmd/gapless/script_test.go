//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"gapless/internal/procfs"

	"github.com/rogpeppe/go-internal/testscript"
)

// mark is in the environment of everything that a script starts.
const mark = "GAPLESS_SCRIPT_RUN"

// TestScripts runs testdata/script/*.txtar against the real binary: gapless runs itself over and over, so the test
// binary cannot stand in for it. Beside testscript's own commands there are
//
//	exit STATUS COMMAND [ARG...]   demands that very exit status, and that nothing is left running
//	oneline                        demands that stderr of the last command is one line that begins with "gapless: "
func TestScripts(t *testing.T) {
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(bin, "gapless"), ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exit": exit, "oneline": oneline,
		},
		Setup: func(env *testscript.Env) error {
			held, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			env.Defer(func() { held.Close() })
			// Nobody listens there by now; a script that gets as far as listening has already failed.
			free, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			free.Close()
			env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("HELD", port(held))
			env.Setenv("FREE", port(free))
			env.Setenv("TESTPID", strconv.Itoa(os.Getpid()))
			env.Setenv("GAPLESS_RUNTIME_DIR", env.WorkDir) // for control sockets
			env.Setenv(mark, env.WorkDir)
			return nil
		},
	})
}

func port(l net.Listener) string {
	_, p, _ := net.SplitHostPort(l.Addr().String())
	return p
}

func exit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit STATUS COMMAND [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var status *exec.ExitError
		if !errors.As(err, &status) {
			ts.Fatalf("%v", err)
		}
		got = status.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
	if left := running(mark + "=" + ts.Getenv(mark)); len(left) > 0 {
		ts.Fatalf("left running: %s", strings.Join(left, "; "))
	}
}

// running returns the processes that have a variable in their environment.
func running(assignment string) []string {
	var found []string
	stats, err := procfs.Processes()
	if err != nil {
		return []string{err.Error()}
	}
	for _, s := range stats {
		if env, err := procfs.Environ(s.PID); err == nil && !s.Dead() && slices.Contains(env, assignment) {
			args, _ := procfs.Cmdline(s.PID)
			found = append(found, fmt.Sprintf("%d %s", s.PID, strings.Join(args, " ")))
		}
	}
	return found
}

func oneline(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: oneline")
	}
	text := ts.ReadFile("stderr")
	if strings.Count(text, "\n") != 1 || !strings.HasPrefix(text, "gapless: ") || !strings.HasSuffix(text, "\n") {
		ts.Fatalf("stderr is not one line of gapless:\n%s", text)
	}
}
