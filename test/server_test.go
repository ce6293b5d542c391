//go:build linux

package test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// options say how a gapless is run. The zero value: two workers of the built-in app on a free port.
type options struct {
	flags   []string   // after the harness's own: --log-format json, and --port unless there is a --listen among them
	command []string   // empty: the built-in app
	env     []string   // in addition to the test's
	wrapper []string   // what the binary is run by, such as setpriv
	dir     string     // where it is run; "": a directory of its own
	stdio   *os.File   // instead of a file: a terminal
	first   bool       // as PID 1 of a PID namespace of its own
	print   *os.File   // likewise, for what it prints only
	files   []*os.File // from descriptor 3 on
	noCount bool       // the number of workers is not for a flag to say
}

// raceOptions spare a race-built gapless a second's wait before each exit, which would be the upgrade's.
const raceOptions = "GORACE=atexit_sleep_ms=0"

// server is a gapless that runs.
type server struct {
	t    testing.TB
	dir  string // of this run: for the binary and whatever the test puts there
	bin  string // the binary on disk, which an upgrade takes
	addr string
	out  *output
	mark string // NAME=VALUE in the environment of everything that it starts

	first  int // PID of the first master
	cmd    *exec.Cmd
	exited chan struct{} // closed after cmd.Wait
	zombie *zombieWatch
}

// start runs a gapless and waits until it serves.
func start(t testing.TB, o options) *server {
	t.Helper()
	s := launch(t, o)
	s.await("the first workers are ready", msg("Application startup complete"))
	eventually(t, patience, "one master", func() bool {
		ms := s.masters()
		if len(ms) == 1 {
			s.first = ms[0].PID
		}
		return len(ms) == 1
	})
	return s
}

// launch runs a gapless and waits for nothing.
func launch(t testing.TB, o options) *server {
	t.Helper()
	s := prepare(t)
	s.run(o)
	return s
}

// prepare makes the directory with the binary.
func prepare(t testing.TB) *server {
	t.Helper()
	s := &server{t: t, dir: publicDir(t), exited: make(chan struct{})}
	s.bin = filepath.Join(s.dir, "gapless")
	s.out = &output{path: filepath.Join(s.dir, "log")}
	s.mark = "E2E_RUN=" + strconv.FormatUint(rand.Uint64(), 36)
	s.goodBinary()
	return s
}

// publicDir is a directory like that of t.TempDir, in which workers of another uid find their way, too.
func publicDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gapless-e2e-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (s *server) run(o options) {
	t := s.t
	t.Helper()
	if o.first {
		o.wrapper = []string{"sh", "-c", `mount --make-rprivate / && mount -t proc proc /proc && exec "$@"`, "sh"}
	}
	args := append(o.wrapper[:len(o.wrapper):len(o.wrapper)], s.bin, "run", "--log-format", "json")
	if !strings.Contains(strings.Join(o.flags, " "), "--listen") {
		port := freePort(t)
		s.addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		args = append(args, "--port", strconv.Itoa(port))
	}
	if !o.noCount && !strings.Contains(strings.Join(o.flags, " "), "-w ") {
		args = append(args, "-w", "2")
	}
	args = append(args, o.flags...)
	if len(o.command) > 0 {
		args = append(append(args, "--"), o.command...)
	}
	log, err := os.OpenFile(s.out.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.Command(args[0], args[1:]...)
	s.cmd.Dir = o.dir
	if o.dir == "" {
		s.cmd.Dir = s.dir
	}
	runtimeDir := filepath.Join(s.dir, "run")
	if err := os.MkdirAll(runtimeDir, 0o700); err != nil {
		t.Fatal(err)
	}
	// The control socket goes where no other run's is.
	s.cmd.Env = append(append(os.Environ(), s.mark, raceOptions, "GAPLESS_RUNTIME_DIR="+runtimeDir), o.env...)
	s.cmd.Stdout, s.cmd.Stderr, s.cmd.ExtraFiles = log, log, o.files
	if o.print != nil {
		s.cmd.Stdout, s.cmd.Stderr = o.print, o.print
	}
	if o.stdio != nil {
		s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = o.stdio, o.stdio, o.stdio
		s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	}
	if o.first {
		s.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	started.Store(s.pid(), true)
	go func() {
		_ = s.cmd.Wait() // the status is in ProcessState
		close(s.exited)
	}()
	s.zombie = watchZombies(s.pid())
	t.Cleanup(s.end)
}

func (s *server) pid() int { return s.cmd.Process.Pid }

// signal sends a signal to the parent.
func (s *server) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatalf("signal %v to the parent: %v", sig, err)
	}
}

// await waits until an event has been logged.
func (s *server) await(what string, match func(event) bool) event {
	s.t.Helper()
	var found []event
	if !became(patience, func() bool {
		gone := s.gone()
		found = s.out.find(match)
		return len(found) > 0 || gone
	}) {
		s.t.Fatalf("not within %v: %s", patience, what)
	}
	if len(found) == 0 {
		s.t.Fatalf("gapless has ended (%v) before: %s", s.cmd.ProcessState, what)
	}
	return found[0]
}

func (s *server) gone() bool {
	select {
	case <-s.exited:
		return true
	default:
		return false
	}
}

// upgrade asks for an upgrade to a generation and waits for it.
func (s *server) upgrade(generation int) event {
	s.t.Helper()
	s.signal(syscall.SIGUSR2)
	return s.upgraded(generation)
}

// upgraded waits for an upgrade that has been asked for.
func (s *server) upgraded(generation int) event {
	s.t.Helper()
	e := s.outcome(generation)
	if !completed(generation)(e) {
		s.t.Fatalf("upgrade to generation %d aborted: %s %q", generation, e.Reason, e.LastLines)
	}
	return e
}

// refused asks for an upgrade and returns how it was aborted.
func (s *server) refused(generation int) event {
	s.t.Helper()
	s.signal(syscall.SIGUSR2)
	e := s.outcome(generation)
	if !aborted(generation)(e) {
		s.t.Fatalf("upgrade to generation %d was to be aborted, and took", generation)
	}
	return e
}

func (s *server) outcome(generation int) event {
	s.t.Helper()
	return s.await(fmt.Sprintf("the outcome of the upgrade to generation %d", generation), func(e event) bool {
		return completed(generation)(e) || aborted(generation)(e)
	})
}

// stop ends it in order.
func (s *server) stop() {
	s.t.Helper()
	s.signal(syscall.SIGTERM)
	s.exits(0)
}

// exits waits for the parent's end and checks its status.
func (s *server) exits(status int) {
	s.t.Helper()
	select {
	case <-s.exited:
	case <-time.After(patience):
		s.t.Fatalf("gapless has not ended within %v", patience)
	}
	if got := s.cmd.ProcessState.ExitCode(); got != status {
		s.t.Fatalf("gapless ended with %v, want status %d", s.cmd.ProcessState, status)
	}
	if left := leftovers(s.mark); len(left) > 0 {
		s.t.Fatalf("left behind:\n%s", list(left))
	}
}

// end ends the run, whatever its state, and demands that nothing is left of it.
func (s *server) end() {
	if !s.gone() {
		_ = s.cmd.Process.Signal(syscall.SIGQUIT)
		select {
		case <-s.exited:
		case <-time.After(10 * time.Second):
			s.t.Errorf("gapless has not ended 10 s after SIGQUIT; there are:\n%s", list(s.tree()))
			_ = s.cmd.Process.Kill()
			<-s.exited
		}
	}
	for _, id := range s.zombie.end() {
		s.t.Errorf("a zombie for more than %v: %s", zombieLimit, id)
	}
	if left := leftovers(s.mark); len(left) > 0 {
		s.t.Errorf("left behind when the parent had ended:\n%s", list(left))
	}
	eventually(s.t, patience, "nothing of the run lives after KILL", func() bool {
		left := leftovers(s.mark)
		for _, p := range left {
			if pr, err := os.FindProcess(p.PID); err == nil {
				_ = pr.Kill()
				_ = pr.Release()
			}
		}
		return len(left) == 0
	})
	reapOrphans()
	text := s.out.text()
	for _, sign := range []string{"DATA RACE", "\npanic: "} {
		if i := strings.Index(text, sign); i >= 0 {
			s.t.Errorf("gapless reports a data race or a panic: %.6000s", text[i:])
		}
	}
	if s.t.Failed() {
		s.t.Logf("the end of what gapless and its workers wrote:\n%s", s.out.tail(s.t, 120))
	}
}

// reapOrphans waits for the dead that came to this process as subreaper. It does not take what exec.Cmd waits for.
func reapOrphans() {
	for _, p := range orphanZombies() {
		_, _ = unix.Wait4(p, nil, unix.WNOHANG, nil)
	}
}

// goodBinary puts the gapless of this checkout on disk, as a deploy does: by a rename.
func (s *server) goodBinary() {
	s.t.Helper()
	s.replace(func(path string) error { return os.Link(built.gapless, path) })
}

// script puts a shell script on disk in place of the binary.
func (s *server) script(text string) {
	s.t.Helper()
	s.replace(func(path string) error { return os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755) })
}

func (s *server) replace(write func(path string) error) {
	s.t.Helper()
	replaceFile(s.t, s.bin, write)
}

// replaceFile makes a path name another file, without a moment at which it names none.
func replaceFile(t testing.TB, path string, write func(path string) error) {
	t.Helper()
	next := path + ".next"
	_ = os.Remove(next)
	if err := write(next); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(next) // rename(2) does nothing if both names are links to the same file
}

// ports are given out once per run.
var ports struct {
	sync.Mutex
	given map[int]bool
}

// freePort returns a port that nobody has, from below the range from which the kernel takes those of clients: between
// now and its use nobody gets it by accident.
func freePort(t testing.TB) int {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	if ports.given == nil {
		ports.given = map[int]bool{}
	}
	for range 1000 {
		port := 15000 + rand.IntN(17000)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil || ports.given[port] {
			continue
		}
		l.Close()
		ports.given[port] = true
		return port
	}
	t.Fatal("no free port")
	return 0
}
