package verify

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"gapless/internal/control"
)

const (
	pollInterval = 10 * time.Millisecond
	stopPatience = 5 * time.Second // for everything to drain once no client is there any more
	quitPatience = 5 * time.Second
	slowStart    = 3 * time.Second
	parentSays   = "gapless: " // begins the line in which gapless says why it ends
	maxSaid      = 20          // lines that a server which does not start is shown with: a stack trace of most languages
)

// ServerConfig says how to run a gapless of our own.
type ServerConfig struct {
	Binary  string   // of gapless
	Args    []string // of `gapless run`, without the command; --control and --log-format are added
	Command []string // empty: the built-in app
	Gate    bool     // let BrokenRelease break it; Command must then be complete
	Log     string   // where it writes; "" = a temporary file that is removed
	Start   time.Duration
	Waits   func() // if set, called once when it takes a while until the server serves
}

// Server is a gapless that runs for a verification.
type Server struct {
	URL *url.URL

	cmd    *exec.Cmd
	client *control.Client
	dir    string
	log    string
	gate   string        // while this file exists, a release is broken
	ended  chan struct{} // closed when the parent has been waited for
	status error         // set before ended
}

// StartError is ErrNothing: the server does not serve. Tail are the last lines that it and its workers wrote.
type StartError struct {
	Err  error
	Tail []string
}

func (e *StartError) Error() string { return fmt.Sprintf("%v: %v", ErrNothing, e.Err) }

// Unwrap makes the error match ErrNothing and its cause.
func (e *StartError) Unwrap() []error { return []error{ErrNothing, e.Err} }

// StartServer starts a gapless and waits until it serves. Its errors are StartErrors.
func StartServer(ctx context.Context, c ServerConfig) (*Server, error) {
	s, tail, err := startServer(ctx, c)
	if err != nil {
		return nil, &StartError{err, tail}
	}
	return s, nil
}

func startServer(ctx context.Context, c ServerConfig) (s *Server, said []string, err error) {
	// The path of a control socket has little room, and $TMPDIR may be long.
	dir, err := os.MkdirTemp(shortTemp(), "gv")
	if err != nil {
		return nil, nil, err
	}
	s = &Server{dir: dir, log: c.Log, ended: make(chan struct{})}
	if s.log == "" {
		s.log = filepath.Join(dir, "log")
	}
	if err := s.start(c); err != nil {
		s.remove()
		return nil, nil, err
	}
	if err := s.await(ctx, c.Start, c.Waits); err != nil {
		said := s.said()
		if why := lastWords(said); why != "" { // it is in the error
			said = slices.DeleteFunc(said, func(line string) bool { return line == parentSays+why })
		}
		_ = s.Stop() // what it has not done tells more than how it ends
		return nil, said, err
	}
	return s, nil, nil
}

func shortTemp() string {
	if dir := os.TempDir(); len(dir) < 60 {
		return dir
	}
	return "/tmp"
}

func (s *Server) start(c ServerConfig) error {
	out, err := os.OpenFile(s.log, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer out.Close() //nolint:errcheck // the child has its own
	socket := filepath.Join(s.dir, "control.sock")
	args := append([]string{"run"}, c.Args...)
	args = append(args, "--control="+socket)
	command := c.Command
	if c.Gate {
		if len(command) == 0 {
			command = []string{c.Binary, "app"}
		}
		if command, err = s.gated(command); err != nil {
			return err
		}
	}
	if len(command) > 0 {
		args = append(append(args, "--"), command...)
	}
	s.cmd = exec.Command(c.Binary, args...)
	s.cmd.Stdout, s.cmd.Stderr = out, out
	ready := make(chan error)
	go s.own(ready)
	return <-ready
}

// gated puts a program before a command that ends at once while a release is broken, and otherwise becomes the command,
// which so keeps the PID and the descriptors that it was promised. Its name is that of a wrapper that gapless looks
// through. Workers of another user must find it.
func (s *Server) gated(command []string) ([]string, error) {
	dir, err := os.MkdirTemp("", "gapless-verify-")
	if err != nil {
		return nil, err
	}
	s.gate = filepath.Join(dir, "broken")
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	program := filepath.Join(dir, "exec")
	text := "#!/bin/sh\nif [ -e '" + strings.ReplaceAll(s.gate, "'", `'\''`) + "' ]; then\n  echo 'this release is broken on purpose' >&2\n  exit 7\nfi\nexec \"$@\"\n"
	if err := os.WriteFile(program, []byte(text), 0o755); err != nil {
		return nil, err
	}
	if err := os.Chmod(program, 0o755); err != nil { // whatever the umask
		return nil, err
	}
	return append([]string{program}, command...), nil
}

// remove removes what lies in temporary directories.
func (s *Server) remove() {
	_ = os.RemoveAll(s.dir)
	if s.gate != "" {
		_ = os.RemoveAll(filepath.Dir(s.gate))
	}
}

// await waits until the first generation serves.
func (s *Server) await(ctx context.Context, limit time.Duration, waits func()) error {
	slow := time.Now().Add(slowStart)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("gapless does not serve within %v", limit))
	defer cancel()
	socket := filepath.Join(s.dir, "control.sock")
	for {
		if s.client == nil {
			if c, err := control.Dial(ctx, socket); err == nil {
				s.client = c
			}
		}
		if s.client != nil {
			st, err := s.client.Status(ctx)
			if err == nil && st.State != control.StateStarting && len(st.Addresses) > 0 {
				s.URL, err = httpURL(st.Addresses[0].URL)
				return err
			}
		}
		if waits != nil && time.Now().After(slow) {
			waits()
			waits = nil
		}
		if err := s.pause(ctx); err != nil {
			return err
		}
	}
}

// pause is between two looks at what the server says of itself.
func (s *Server) pause(ctx context.Context) error {
	t := time.NewTimer(pollInterval)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-s.ended:
		lines := s.said()
		if why := lastWords(lines); why != "" {
			return errors.New(why + addressHint(lines))
		}
		return fmt.Errorf("gapless has ended: %w", s.status)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func httpURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("the first listener, %s, is no TCP address: verify needs one", text)
	}
	if h := u.Hostname(); h == "" || h == "0.0.0.0" || h == "::" {
		u.Host = "127.0.0.1:" + u.Port()
	}
	return u, nil
}

// lastWords is why gapless says it has ended, if it says so.
func lastWords(lines []string) string {
	for _, line := range slices.Backward(lines) {
		if why, ok := strings.CutPrefix(line, parentSays); ok {
			return why
		}
	}
	return ""
}

// addressHint tells what to do about a command that has opened an address by itself. Many servers are given the socket of
// gapless's port whatever they ask for that port by, but verify takes a port that they do not know.
func addressHint(lines []string) string {
	for _, line := range lines {
		line = strings.ToLower(line)
		if strings.Contains(line, "eaddrinuse") || strings.Contains(line, "address already in use") {
			return "; it opens an address by itself, which is in use: if gapless should serve there, give that port with --port"
		}
	}
	return ""
}

// said is the end of what gapless and its workers wrote.
func (s *Server) said() []string {
	text, err := os.ReadFile(s.log)
	if err != nil || len(strings.TrimSpace(string(text))) == 0 {
		return nil
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[max(0, len(lines)-maxSaid):]
}

// Upgrade returns an upgrade to what is on disk.
func (s *Server) Upgrade() Act {
	return Act{Name: "upgrade", Do: func(ctx context.Context) (Outcome, error) {
		got, err := s.upgrade(ctx)
		if err != nil {
			return Outcome{}, err
		}
		if !got.OK {
			return Outcome{}, fmt.Errorf("aborted: %s%s", got.Reason, lastOf(got.Tail))
		}
		return Outcome{Generation: got.Generation, Note: fmt.Sprintf("generation %d is in charge", got.Generation)}, nil
	}}
}

// upgrade asks until nothing else is under way.
func (s *Server) upgrade(ctx context.Context) (control.Result, error) {
	for {
		var last control.Event
		got, err := s.client.Upgrade(ctx, control.UpgradeRequest{}, func(e control.Event) {
			if e.Kind == control.KindUpgrade {
				last = e
			}
		})
		if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("%w%s", context.Cause(ctx), phaseText(last))
		}
		busy := got.Busy || errors.Is(err, control.ErrBusy) || errors.Is(err, control.ErrNoMaster)
		if !busy {
			return got, err
		}
		if err := s.pause(ctx); err != nil {
			return control.Result{}, err
		}
	}
}

// phaseText says how far an upgrade had got that was not done in time.
func phaseText(e control.Event) string {
	if e.State == "" {
		return ""
	}
	text := fmt.Sprintf(": generation %d is in phase %s", e.Generation, e.State)
	if e.Total > 0 {
		text += fmt.Sprintf(", %d of %d", e.Ready, e.Total)
	}
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	return text + lastOf(e.LastLines)
}

func lastOf(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return ": " + lines[len(lines)-1]
}

// Stop drains the server, and ends it at once if that takes long: what was to be measured has been. Its error is for
// people, and changes nothing about that.
func (s *Server) Stop() error {
	defer s.remove()
	for _, step := range []struct {
		sig  syscall.Signal
		wait time.Duration
	}{{syscall.SIGTERM, stopPatience}, {syscall.SIGQUIT, quitPatience}, {syscall.SIGKILL, quitPatience}} {
		_ = s.cmd.Process.Signal(step.sig) // through its pidfd; one that is gone shows below
		t := time.NewTimer(step.wait)
		select {
		case <-s.ended:
			t.Stop()
			if step.sig == syscall.SIGTERM && s.status != nil {
				return fmt.Errorf("when gapless was asked to stop, it ended with %w", s.status)
			}
			return nil
		case <-t.C:
		}
	}
	return fmt.Errorf("gapless (pid %d) does not end", s.cmd.Process.Pid)
}
