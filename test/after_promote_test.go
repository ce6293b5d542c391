//go:build linux

package test

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gapless/internal/control"
)

const (
	afterDone    = "What was to follow the promotion is complete"
	afterFailed  = "What was to follow the promotion failed; it is not run again"
	afterStopped = "The master was killed while it ran what was to follow the promotion; see whether that is complete"
)

// after are the lines that the steps have written so far.
func after(t *testing.T, path string) string {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return noted(t, path)
}

// hold begins a request to the built-in app that lasts until end is called, which demands that a generation answers it.
func (s *server) hold(generation int) (end func()) {
	s.t.Helper()
	c, err := net.DialTimeout("tcp", s.addr, patience)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	if _, err := io.WriteString(c, "POST /echo HTTP/1.1\r\nHost: server\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhel"); err != nil {
		s.t.Fatal(err)
	}
	previewed{server: s}.underWay(generation)
	return func() {
		s.t.Helper()
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(c, "lo"); err != nil {
			s.t.Fatalf("the request in flight was lost: %v", err)
		}
		answer, err := io.ReadAll(c)
		want := fmt.Sprintf("X-Gapless-Generation: %d\r\n", generation)
		if err != nil || !strings.HasSuffix(string(answer), "hello") || !strings.Contains(string(answer), want) {
			s.t.Fatalf("the request in flight got %q, %v; want %q in it", answer, err, want)
		}
	}
}

// Each upgrade's step runs once, in order, and not before the old generation is gone; none runs at the first start, nor for
// an upgrade that is aborted.
func TestAfterPromote_RunsOnceWhenTheOldIsGone(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"gapless", "uvicorn"} {
		t.Run(program, func(t *testing.T) {
			notes := filepath.Join(publicDir(t), "notes")
			o := options{flags: []string{"--drain-timeout", "5m", "--after-promote", "echo $GAPLESS_GENERATION >> " + notes, "--after-promote", "echo then >> " + notes}, env: []string{"E2E_STARTUP=0"}}
			var s *server
			if program == "gapless" {
				s = start(t, o)
			} else {
				s = foreign(t, program, o)
			}
			end := func() {}
			if program == "gapless" {
				end = s.hold(1)
			}
			s.upgrade(2)
			s.verb("upgrade", "--stage").demand(t, 0)
			s.verb("abort").demand(t, 0)
			s.upgrade(4) // what is to follow generation 2 is this one's to run now
			if program == "gapless" {
				if got := after(t, notes); got != "" {
					t.Errorf("%q ran while a worker of generation 1 was there", got)
				}
				end()
			}
			s.await("the step after generation 4", func(e event) bool { return e.Msg == afterDone && e.After == 4 })
			s.upgrade(5)
			s.await("the step after generation 5", func(e event) bool { return e.Msg == afterDone && e.After == 5 })
			if got, want := after(t, notes), "2, then, 4, then, 5, then"; got != want {
				t.Errorf("%q has run, want %q", got, want)
			}
			if st := s.status(); st.State != control.StateServing {
				t.Errorf("the status is %s: %s", st.State, st.DegradedReason)
			}
			s.stop()
		})
	}
}

// A failure undoes nothing and is told; a step that waits, or runs, when its master is killed does not run twice.
func TestAfterPromote_FailuresAndKills(t *testing.T) {
	t.Parallel()
	dir := publicDir(t)
	notes, hold := filepath.Join(dir, "notes"), filepath.Join(dir, "hold")
	if err := syscall.Mkfifo(hold, 0o600); err != nil {
		t.Fatal(err)
	}
	step := fmt.Sprintf("echo $GAPLESS_GENERATION >> %s; case $GAPLESS_GENERATION in 2) echo broken; exit 5;; 4) cat %s;; esac", notes, hold)
	s := start(t, options{flags: []string{"--after-promote", step, "--drain-timeout", "5m"}})
	s.upgrade(2)
	s.await("the step after generation 2", msg(afterFailed))
	st := s.becomes("it is degraded", func(st control.Status) bool { return st.State == control.StateDegraded })
	if !strings.Contains(st.DegradedReason, "--after-promote of generation 2") || !strings.Contains(st.DegradedReason, "exit status 5") {
		t.Errorf("the status says %q", st.DegradedReason)
	}
	s.get("/").generation(2)

	// Killed while the step waits for a request of the old generation: it runs when that is over.
	end := s.hold(2)
	s.upgrade(3)
	s.killMaster()
	if got := after(t, notes); got != "2" {
		t.Errorf("%q has run", got)
	}
	end()
	s.await("the step after generation 3", msg(afterDone))

	// Killed while it runs: it ends with its master, how far it came nobody knows, and it is not run again.
	s.upgrade(4)
	eventually(t, patience, "the step after generation 4 runs", func() bool { return after(t, notes) == "2, 3, 4" })
	v := s.verb("upgrade").demand(t, 1)
	if !strings.Contains(v.stderr, "an after-promote is under way") {
		t.Errorf("the upgrade meanwhile was refused with %s", v.stderr)
	}
	s.killMaster()
	s.await("the interrupted step is told of", msg(afterStopped))
	s.becomes("it is degraded", func(st control.Status) bool {
		return st.State == control.StateDegraded && strings.Contains(st.DegradedReason, "see whether it is complete")
	})
	s.upgrade(5)
	eventually(t, patience, "the step after generation 5 has run", func() bool { return after(t, notes) == "2, 3, 4, 5" })
	s.becomes("all is well", func(st control.Status) bool { return st.State == control.StateServing })
	s.stop()
}

// TERM does not wait for a step that takes long.
func TestAfterPromote_EndsWithGapless(t *testing.T) {
	t.Parallel()
	dir := publicDir(t)
	s := start(t, options{flags: []string{"--after-promote", "touch " + dir + "/begun; sleep 600"}})
	s.upgrade(2)
	eventually(t, patience, "the step runs", func() bool { _, err := os.Stat(dir + "/begun"); return err == nil })
	s.stop()
}
