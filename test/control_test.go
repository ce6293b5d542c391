//go:build linux

package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"testing"

	"gapless/internal/control"
)

// said is what came of a verb.
type said struct {
	verb           string
	status         int
	stdout, stderr string
}

// demand fails the test unless the exit status is the one that is wanted.
func (v said) demand(t testing.TB, status int) said {
	t.Helper()
	if v.status != status {
		t.Fatalf("gapless %s: exit status %d, want %d\n%s%s", v.verb, v.status, status, v.stdout, v.stderr)
	}
	return v
}

// socket is the path of the control socket.
func (s *server) socket() string {
	s.t.Helper()
	var paths []string
	eventually(s.t, patience, "one control socket", func() bool {
		paths, _ = filepath.Glob(filepath.Join(s.dir, "run", "*.sock"))
		return len(paths) == 1
	})
	return paths[0]
}

// verb runs a verb to its end.
func (s *server) verb(verb string, args ...string) said {
	s.t.Helper()
	return s.verbLater(verb, args...).wait()
}

// running is a verb that runs.
type running struct {
	t        testing.TB
	verb     string
	cmd      *exec.Cmd
	out, err bytes.Buffer // read when done is closed
	done     chan struct{}
	ended    error // of cmd.Wait; read when done is closed
}

// verbLater starts a verb. Who does not call wait leaves it to the end of the test, which ends it.
func (s *server) verbLater(verb string, args ...string) *running {
	s.t.Helper()
	r := &running{t: s.t, verb: verb, done: make(chan struct{})}
	r.cmd = exec.Command(built.gapless, append([]string{verb, "--control", s.socket()}, args...)...)
	r.cmd.Env = append(r.cmd.Environ(), raceOptions)
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.err
	if err := r.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		defer close(r.done)
		r.ended = r.cmd.Wait()
	}()
	s.t.Cleanup(func() {
		_ = r.cmd.Process.Kill() // mostly it has ended
		<-r.done
	})
	return r
}

func (r *running) wait() said {
	r.t.Helper()
	<-r.done
	err := r.ended
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.t.Fatal(err)
	}
	return said{r.verb, r.cmd.ProcessState.ExitCode(), r.out.String(), r.err.String()}
}

// status is the answer of `gapless status --json`.
func (s *server) status() control.Status {
	s.t.Helper()
	v := s.verb("status", "--json").demand(s.t, 0)
	var st control.Status
	dec := json.NewDecoder(bytes.NewReader([]byte(v.stdout)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&st); err != nil {
		s.t.Fatalf("%v in %s", err, v.stdout)
	}
	return st
}

// becomes waits until the status is as wanted.
func (s *server) becomes(what string, ok func(control.Status) bool) control.Status {
	s.t.Helper()
	var st control.Status
	if !became(patience, func() bool { st = s.status(); return ok(st) }) {
		text, _ := json.MarshalIndent(st, "", " ")
		s.t.Fatalf("not within %v: the status says %s\n%s", patience, what, text)
	}
	return st
}

// own returns the workers of the newest generation.
func own(st control.Status) []control.Worker {
	if len(st.Generations) == 0 {
		return nil
	}
	return st.Generations[0].Workers
}

// counted by what they are doing.
func inState(ws []control.Worker, state string) (n int) {
	for _, w := range ws {
		if w.State == state {
			n++
		}
	}
	return n
}
