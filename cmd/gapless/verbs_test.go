//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gapless/internal/control"
	"gapless/internal/control/controltest"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestVerbs runs testdata/verbs/*.txtar. Beside testscript's own commands there are
//
//	parent PATH OUTCOME     a stand-in for a parent listens at PATH; what comes of everything is OUTCOME, see outcomes
//	calls [CALL...]         demands that the stand-ins were asked for just that since the last time
//	code STATUS CMD [ARG…]  demands that very exit status
//	await CMD [ARG...]      repeats a command until it succeeds
//	pick KEY VARIABLE       sets a variable from a key of the JSON that the last command printed
func TestVerbs(t *testing.T) {
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(bin, "gapless"), ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/verbs",
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"parent": startParent, "calls": checkCalls, "code": code, "await": await, "pick": pick,
		},
		Setup: func(env *testscript.Env) error {
			// A socket's path has little room, and testscript's folders have long names.
			dir, err := os.MkdirTemp("/tmp", "gv")
			if err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(dir) })
			env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("GAPLESS_RUNTIME_DIR", filepath.Join(dir, "gapless")) // whatever else runs on this machine
			env.Setenv("SOCKETS", filepath.Join(dir, "gapless"))
			env.Setenv("ONLY", bin) // as PATH: gapless, and nothing else
			env.Setenv("TESTPID", strconv.Itoa(os.Getpid()))
			env.Values[fakesKey{}] = &[]*controltest.Fake{}
			return nil
		},
	})
}

type fakesKey struct{}

func outcomes(name string) (*controltest.Fake, bool) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	f := &controltest.Fake{
		State: control.Status{
			Version: "1.2.3", ParentPID: os.Getpid(), State: control.StateServing, Detail: "2 workers serve", Workers: 2,
			Addresses: []control.Address{{Name: "web", URL: "http://127.0.0.1:4711", Accept: control.AcceptSteered}},
			Generations: []control.Generation{{Generation: 1, State: control.GenerationServing, Workers: []control.Worker{
				{PID: 77, State: "ready", Since: at, Started: at},
			}}},
		},
		Events: []control.Event{
			{Kind: control.KindUpgrade, State: "starting", Generation: 2},
			{Kind: control.KindUpgrade, State: "ready", Ready: 1, Total: 2},
			{Kind: control.KindUpgrade, State: "ready", Ready: 2, Total: 2},
		},
		Outcome: control.Result{OK: true, Generation: 2, Revision: 3, TookSeconds: 1.25},
	}
	switch name {
	case "ok":
	case "aborted":
		f.Outcome = control.Result{Generation: 2, Reason: "worker 0 ended before it was ready: exit status 1",
			Tail: []string{"Traceback (most recent call last):", "\x1b[31mImportError: no module\x07"}}
	case "staged":
		percent := 25
		f.Outcome.State, f.Outcome.Percent = control.GenerationStaged, &percent
	case "window":
		percent := 100
		f.Outcome.State, f.Outcome.Percent = control.GenerationWindow, &percent
	case "undone":
		f.Outcome = control.Result{OK: true, Generation: 1}
		f.Events = []control.Event{{Kind: control.KindUpgrade, State: "aborted", Generation: 2, Reason: "it was aborted by order"}}
	case "busy":
		f.Outcome, f.Err, f.Events = control.Result{}, control.ErrBusy, nil
	case "no-master":
		f.Err = control.ErrNoMaster
	case "broken":
		f.Err = errors.New("it broke")
	case "hangs":
		f.Hold = make(chan struct{}) // until the stand-in ends
	default:
		return nil, false
	}
	return f, true
}

func startParent(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: parent PATH OUTCOME")
	}
	fake, ok := outcomes(args[1])
	if !ok {
		ts.Fatalf("parent: unknown outcome %s", args[1])
	}
	fakes := ts.Value(fakesKey{}).(*[]*controltest.Fake)
	*fakes = append(*fakes, fake)
	l, err := control.Listen(args[0])
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- control.Serve(ctx, l, fake, nil) }()
	ts.Defer(func() {
		cancel()
		ts.Check(<-ended)
	})
}

// checkCalls waits for what is wanted: with --no-wait a verb ends before the parent has begun.
func checkCalls(ts *testscript.TestScript, _ bool, want []string) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var got []string
	for end := time.Now().Add(10 * time.Second); ; <-tick.C {
		for _, f := range *ts.Value(fakesKey{}).(*[]*controltest.Fake) {
			got = append(got, f.TakeCalls()...)
		}
		if slices.Equal(got, want) {
			return
		}
		if len(got) >= len(want) || time.Now().After(end) {
			ts.Fatalf("the parent was asked for %q, want %q", got, want)
		}
	}
}

func code(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var status *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &status) {
		got = status.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

func await(ts *testscript.TestScript, _ bool, args []string) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); ; <-tick.C {
		err := ts.Exec(args[0], args[1:]...)
		if err == nil {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s: %v", strings.Join(args, " "), err)
		}
	}
}

func pick(ts *testscript.TestScript, _ bool, args []string) {
	var all map[string]any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &all))
	value, ok := all[args[0]]
	if !ok {
		ts.Fatalf("no %s in %v", args[0], all)
	}
	ts.Setenv(args[1], fmt.Sprint(value))
}
