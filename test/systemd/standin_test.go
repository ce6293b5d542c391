//go:build linux

package systemd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gapless/internal/notify"
	"gapless/internal/procfs"

	"golang.org/x/sys/unix"
)

// standIn does what systemd would with one service at a time: it starts it as the unit says, waits for READY=1, reloads it,
// keeps its descriptors, starts it again when it dies, and stops it. What is left of a service whose main process has died it
// kills as KillMode=mixed does; it finds that because this process is a subreaper.
type standIn struct {
	dir  string
	sock *notify.Socket
	log  *os.File
	over chan struct{} // closed at the end of the test

	mu       sync.Mutex
	unit     map[string]string // settings of the one unit
	name     string
	state    string
	cmd      *exec.Cmd
	ended    chan struct{} // closed when cmd has, and what follows from it is done
	ready    chan struct{}
	stopping bool
	restarts int
	result   string
	status   int
	stored   []entry
}

// entry is a descriptor in the store.
type entry struct {
	name string
	file *os.File
}

func newStandIn(t testing.TB) *standIn {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "gapless-standin-")
	if err != nil {
		t.Fatal(err)
	}
	s := &standIn{dir: dir, over: make(chan struct{}), state: "inactive"}
	if s.sock, err = notify.Listen(); err != nil {
		t.Fatal(err)
	}
	if s.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		s.hear()
	}()
	t.Cleanup(func() {
		close(s.over)
		_, _ = s.stop()
		_ = s.sock.SetReadDeadline(time.Unix(1, 0))
		<-heard
		s.sock.Close()
		s.log.Close()
		_ = os.RemoveAll(dir)
	})
	return s
}

func (s *standIn) path(name string) string { return name }
func (s *standIn) folder() string          { return s.dir }

func (s *standIn) dial(ctx context.Context, network, address string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

func (s *standIn) port(int) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "0"
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func (s *standIn) try(args ...string) (string, error) {
	verb, last := "", args[len(args)-1]
	if len(args) > 1 {
		verb = args[1]
	}
	switch {
	case args[0] == "journalctl":
		text, err := os.ReadFile(s.log.Name())
		return string(text), err
	case filepath.Base(args[0]) == "gapless" && verb == "install":
		return s.install(args)
	case filepath.Base(args[0]) == "gapless" && verb == "uninstall":
		s.mu.Lock()
		s.unit = nil
		s.mu.Unlock()
		return s.stop()
	case args[0] != "systemctl":
		return command(args)
	}
	switch verb {
	case "show":
		return s.property(args[2]), nil
	case "reload":
		return command(s.words("ExecReload"))
	case "stop":
		return s.stop()
	case "kill":
		s.mu.Lock()
		defer s.mu.Unlock()
		return "", s.cmd.Process.Kill()
	case "cat":
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.unit == nil {
			return "", fmt.Errorf("no unit %s", last)
		}
		return fmt.Sprint(s.unit), nil
	}
	return "", fmt.Errorf("the stand-in does not know systemctl %s", verb)
}

func command(args []string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// install starts what gapless unit prints.
func (s *standIn) install(args []string) (string, error) {
	args = slices.Clone(args)
	args[1] = "unit"
	text, err := command(args)
	if err != nil {
		return text, err
	}
	unit := make(map[string]string)
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			unit[key] = strings.ReplaceAll(value, "%t", filepath.Join(s.dir, "run"))
		}
	}
	s.mu.Lock()
	s.unit, s.name, s.restarts = unit, args[slices.Index(args, "--name")+1], 0
	s.mu.Unlock()
	return "", s.start()
}

// words of an Exec line: those of these tests have no blanks in them.
func (s *standIn) words(key string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Fields(s.unit[key])
}

func (s *standIn) property(flag string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch key := strings.TrimPrefix(flag, "--property="); key {
	case "ActiveState":
		return s.state
	case "MainPID":
		if s.state == "inactive" || s.cmd == nil {
			return "0"
		}
		return strconv.Itoa(s.cmd.Process.Pid)
	case "NRestarts":
		return strconv.Itoa(s.restarts)
	case "Result":
		return s.result
	case "ExecMainStatus":
		return strconv.Itoa(s.status)
	case "NFileDescriptorStore":
		return strconv.Itoa(len(s.stored))
	default:
		return s.unit[key]
	}
}

// start starts the main process, with what is stored, and waits until it is ready or has ended.
func (s *standIn) start() error {
	words := s.words("ExecStart")
	s.mu.Lock()
	// The shell becomes gapless, and so knows its PID.
	cmd := exec.Command("/bin/sh", append([]string{"-c", `LISTEN_PID=$$ WATCHDOG_PID=$$ exec "$0" "$@"`}, words...)...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+s.sock.Address(), "WATCHDOG_USEC=60000000", s.unit["Environment"])
	if len(s.stored) > 0 {
		var names []string
		for _, e := range s.stored {
			names, cmd.ExtraFiles = append(names, e.name), append(cmd.ExtraFiles, e.file)
		}
		cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	cmd.Stdout, cmd.Stderr = s.log, s.log
	ready, ended := make(chan struct{}), make(chan struct{})
	s.cmd, s.ready, s.ended, s.stopping, s.state = cmd, ready, ended, false, "activating"
	err := cmd.Start()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	go s.watch(cmd, ended)
	select {
	case <-ready:
		return nil
	case <-ended:
		return fmt.Errorf("%s has ended before it was ready", s.name)
	case <-time.After(patience):
		return fmt.Errorf("%s is not ready", s.name)
	}
}

// watch does what follows the end of the main process.
func (s *standIn) watch(cmd *exec.Cmd, ended chan struct{}) {
	err := cmd.Wait()
	_, _ = procfs.SignalDescendants(os.Getpid(), syscall.SIGKILL)
	s.mu.Lock()
	s.result, s.status = "success", 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		s.result, s.status = "failed", exit.ExitCode()
	}
	was := s.state
	s.state = "inactive"
	again := was == "active" && !s.stopping && s.unit["Restart"] == "always"
	if s.stopping {
		s.forget(func(entry) bool { return true })
	}
	if again {
		s.restarts++
	}
	s.mu.Unlock()
	close(ended)
	if !again {
		return
	}
	pause, _ := time.ParseDuration(s.unit["RestartSec"])
	select {
	case <-time.After(pause):
		if err := s.start(); err != nil {
			fmt.Fprintln(s.log, "restart:", err)
		}
	case <-s.over:
	}
}

func (s *standIn) stop() (string, error) {
	s.mu.Lock()
	cmd, ended := s.cmd, s.ended
	s.stopping = true
	if cmd == nil || s.state == "inactive" {
		s.mu.Unlock()
		return "", nil
	}
	err := cmd.Process.Signal(syscall.SIGTERM)
	limit, parseErr := time.ParseDuration(s.unit["TimeoutStopSec"])
	s.mu.Unlock()
	if parseErr != nil {
		limit = patience
	}
	select {
	case <-ended:
		return "", nil
	case <-time.After(limit):
		return "", errors.Join(err, cmd.Process.Kill(), errors.New("it had to be killed"))
	}
}

// hear takes in what the main process says, and nobody else.
func (s *standIn) hear() {
	for {
		m, err := s.sock.ReceiveFDs()
		switch {
		case errors.Is(err, notify.ErrForeign):
			continue
		case err != nil:
			return
		}
		s.mu.Lock()
		if s.cmd == nil || s.cmd.Process == nil || m.PID != s.cmd.Process.Pid {
			notify.CloseFDs(m.FDs)
			s.mu.Unlock()
			continue
		}
		fmt.Fprintf(s.log, "notified: %v, %d descriptors\n", slices.Sorted(maps.Keys(m.Fields)), len(m.FDs))
		if m.Ready() && s.state == "activating" {
			s.state = "active"
			close(s.ready)
		}
		if m.Fields["FDSTORE"] == "1" {
			for _, fd := range m.FDs {
				s.keep(m.Fields["FDNAME"], fd)
			}
		} else {
			notify.CloseFDs(m.FDs)
		}
		if m.Fields["FDSTOREREMOVE"] == "1" {
			s.forget(func(e entry) bool { return e.name == m.Fields["FDNAME"] })
		}
		s.mu.Unlock()
	}
}

// keep stores a descriptor, unless it has that one.
func (s *standIn) keep(name string, fd int) {
	same := func(e entry) bool {
		var a, b unix.Stat_t
		return e.name == name && unix.Fstat(fd, &a) == nil && unix.Fstat(int(e.file.Fd()), &b) == nil && a.Ino == b.Ino && a.Dev == b.Dev
	}
	file := os.NewFile(uintptr(fd), name)
	if slices.ContainsFunc(s.stored, same) {
		file.Close()
		return
	}
	s.stored = append(s.stored, entry{name, file})
}

func (s *standIn) forget(which func(entry) bool) {
	s.stored = slices.DeleteFunc(s.stored, func(e entry) bool {
		if which(e) {
			_ = io.Closer(e.file).Close()
			return true
		}
		return false
	})
}
