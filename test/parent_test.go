//go:build linux

package test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The PID file names the parent, for as long as it lives.
func TestPIDFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(publicDir(t), "gapless.pid")
	writeTo(t, path, "1\n") // stale, though the PID it names lives
	s := start(t, options{flags: []string{"--pid-file", path}})
	named := func() string { b, _ := os.ReadFile(path); return strings.TrimSpace(string(b)) }
	if named() != fmt.Sprint(s.pid()) {
		t.Errorf("the file says %q, the parent is %d", named(), s.pid())
	}
	s.upgrade(2)
	if named() != fmt.Sprint(s.pid()) {
		t.Errorf("after an upgrade the file says %q", named())
	}
	second := exec.CommandContext(t.Context(), s.bin, "run", "--port", fmt.Sprint(freePort(t)), "--pid-file", path)
	out, err := second.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), fmt.Sprint(s.pid())) || strings.Count(string(out), "\n") != 1 {
		t.Errorf("a second one: %v, %q", err, out)
	}
	if named() != fmt.Sprint(s.pid()) {
		t.Errorf("after a second one tried, the file says %q", named())
	}
	s.stop()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is left: %v", err)
	}
}

// A file that a killed parent has left is no hindrance.
func TestPIDFile_OfAKilledParent(t *testing.T) {
	t.Parallel()
	path := filepath.Join(publicDir(t), "gapless.pid")
	s := start(t, options{flags: []string{"--pid-file", path}})
	s.signal(syscall.SIGKILL)
	<-s.exited
	eventually(t, patience, "masters and workers of a killed parent end by themselves", func() bool { return len(leftovers(s.mark)) == 0 })
	s = start(t, options{flags: []string{"--pid-file", path}})
	s.stop()
}

// A killed parent leaves nothing behind that serves on without control, and what is in flight is finished.
func TestKill_Parent(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	s.upgrade(2)
	slow := s.ask("/slow?ms=600")
	s.inFlight(slow)
	s.signal(syscall.SIGKILL)
	<-s.exited
	slow.answer(t)
	eventually(t, patience, "all of it has ended", func() bool { return len(leftovers(s.mark)) == 0 })
	if c, err := net.DialTimeout("tcp", s.addr, time.Second); err == nil {
		c.Close()
		t.Error("somebody still listens")
	}
}
