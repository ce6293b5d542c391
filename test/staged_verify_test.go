//go:build linux

package test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"gapless/internal/load"
)

// verification is a command for --verify: it notes who answers at the preview address, and fails at a share if it is told.
func verification() int {
	resp, err := client(os.Getenv("GAPLESS_PREVIEW_ADDR")).Get("http://server/")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	_ = resp.Body.Close()
	f, err := os.OpenFile(os.Getenv("E2E_NOTES"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer f.Close()
	weight := os.Getenv("GAPLESS_WEIGHT")
	fmt.Fprintln(f, os.Getenv("GAPLESS_GENERATION"), weight, resp.Header.Get("X-Gapless-Generation"))
	if weight == os.Getenv("E2E_FAILS_AT") {
		fmt.Println("half of the answers\nwere wrong")
		return 7
	}
	return 0
}

// verifying is the text of such a command.
func (s *server) verifying(failsAt string) (command, notes string) {
	notes = filepath.Join(s.dir, "notes")
	return fmt.Sprintf("%s=verification E2E_NOTES=%s E2E_FAILS_AT=%s exec %s", roleVariable, notes, failsAt, built.self), notes
}

func noted(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", ", ")
}

// A verification runs without a share, with each of them, and before the promotion, and it reaches the new generation alone,
// with and without a preview address of gapless's own.
func TestVerification_RunsAtEachStep(t *testing.T) {
	t.Parallel()
	for _, preview := range []bool{false, true} {
		t.Run("preview "+strconv.FormatBool(preview), func(t *testing.T) {
			var flags []string
			if preview {
				flags = []string{"--preview", "127.0.0.1:0"}
			}
			s := start(t, options{flags: flags})
			command, notes := s.verifying("none")
			s.verb("upgrade", "--stage", "--weights", "5,50", "--bake", "20ms", "--verify", command, "--verify-http", "/healthz=200", "--verify-http", "/").demand(t, 0)
			s.get("/").generation(2)
			if got, want := noted(t, notes), "2 0 2, 2 5 2, 2 50 2, 2 50 2"; got != want {
				t.Errorf("verified %q, want %q", got, want)
			}
			s.stop()
		})
	}
}

// One that fails gives the generation up, with what it printed, and nobody notices.
func TestVerification_FailsUnderLoad(t *testing.T) {
	for _, program := range []string{"gapless", "uvicorn"} {
		t.Run(program, func(t *testing.T) {
			var s *server
			streams := postStreams("/", requestsPerSecond()/2)
			if program == "uvicorn" {
				s = foreign(t, program, options{env: []string{"E2E_STARTUP=0.1"}})
				// Its server closes idle connections when it drains, as it says itself: only new ones are promised.
				streams = []load.Stream{{Kind: load.NewConn, Connections: 8, Rate: 100, Method: http.MethodPost, Path: "/", Body: 50}}
			} else {
				s = start(t, options{})
			}
			command, notes := s.verifying("25")
			p := plan{addr: s.addr, streams: streams, every: 200 * time.Millisecond, tail: 300 * time.Millisecond}
			r := p.under(t, 1, func(int) {
				v := s.verb("upgrade", "--stage", "--weights", "5,25,50", "--bake", "300ms", "--verify", command).demand(t, 1)
				for _, want := range []string{"at 25 %: exit status 7", "half of the answers", "were wrong"} {
					if !strings.Contains(v.stderr, want) {
						t.Errorf("%q is missing in\n%s", want, v.stderr)
					}
				}
			})
			r.noneLost(t)
			if got, want := noted(t, notes), "2 0 2, 2 5 2, 2 25 2"; got != want {
				t.Errorf("verified %q, want %q", got, want)
			}
			s.settled(1, 2)
			st := s.status()
			if last := st.LastUpgrade; last == nil || last.OK || last.Generation != 2 || !strings.Contains(last.Reason, "at 25 %") || len(last.Tail) == 0 {
				t.Errorf("the status says %+v", last)
			}
			s.stop()
		})
	}
}

// A wrong answer to a probe gives the generation up, and says what came.
func TestVerification_WrongAnswer(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"--accept", "shared"}})
	for _, tc := range []struct{ flag, reason string }{
		{"/nowhere", "verification of /nowhere at 0 %, request 1 of 3: 404 Not Found instead of a status below 400"},
		{"/healthz=503", "verification of /healthz at 0 %, request 1 of 3: 200 OK instead of 503"},
		{"/slow?ms=600000", "verification of /slow?ms=600000 at 0 %, request 1 of 3: no whole answer within 5s"},
	} {
		v := s.verb("upgrade", "--stage", "--verify-probes", "3", "--verify-http", tc.flag).demand(t, 1)
		if !strings.Contains(v.stderr, tc.reason) {
			t.Errorf("%s: the reason is not %q in\n%s", tc.flag, tc.reason, v.stderr)
		}
	}
	s.get("/").generation(1)
	s.settled(1, 2)
	s.stop()
}

// A verification that hangs ends with the generation, and nothing of it is left.
func TestVerification_EndsWithTheStage(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	for _, how := range []string{"abort", "timeout", "stop"} {
		notes := filepath.Join(s.dir, how)
		// A child of the shell, which must not outlive it.
		args := []string{"--stage", "--verify", "sleep 600 & echo $! > " + notes + ".tmp; mv " + notes + ".tmp " + notes + "; wait"}
		if how == "timeout" {
			args = append(args, "--verify-timeout", "1s")
		}
		v := s.verbLater("upgrade", args...)
		eventually(t, patience, "the verification runs", func() bool { _, err := os.Stat(notes); return err == nil })
		pid, err := strconv.Atoi(noted(t, notes))
		if err != nil {
			t.Fatal(err)
		}
		switch how {
		case "abort":
			s.verb("abort").demand(t, 0)
		case "stop":
			s.stop()
		}
		if got := v.wait(); got.status != 1 {
			t.Errorf("%s: exit status %d: %s", how, got.status, got.stderr)
		} else if how == "timeout" && !strings.Contains(got.stderr, "not finished within --verify-timeout 1s") {
			t.Errorf("timeout: %s", got.stderr)
		}
		eventually(t, patience, "the command is gone", func() bool {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			return err != nil || strings.Contains(string(stat), ") Z ")
		})
		if how != "stop" {
			s.settled(1, 2)
			s.get("/").generation(1)
		}
	}
}
