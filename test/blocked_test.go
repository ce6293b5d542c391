//go:build linux

package test

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"gapless/internal/control"

	"golang.org/x/sys/unix"
)

// fullPipe is the writing end of a pipe that takes nothing, because nobody reads it.
func fullPipe(t *testing.T) *os.File {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fds[0]) })
	for page := make([]byte, 4096); ; {
		if _, err := unix.Write(fds[1], page); errors.Is(err, unix.EAGAIN) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.SetNonblock(fds[1], false); err != nil { // as a shell would pass it on
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[1]), "a full pipe")
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// What nobody reads holds up nobody: gapless starts, upgrades, replaces what dies, and ends.
func TestLog_NobodyReads(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	s.run(options{print: fullPipe(t), flags: []string{"--log-level", "debug"}})
	s.becomes("it serves", func(st control.Status) bool { return st.State == control.StateServing })
	for g := 2; g <= 3; g++ {
		s.verb("upgrade", "--timeout", "30s").demand(t, 0)
		s.get("/").generation(g)
	}
	victim := s.worker(3, 0)
	signal(t, victim.PID, syscall.SIGKILL)
	s.becomes("the dead worker is replaced", func(st control.Status) bool {
		return len(st.Generations) == 1 && len(st.Generations[0].Workers) == 2 && st.Generations[0].Workers[0].PID != victim.PID &&
			st.Generations[0].Workers[0].State == "ready"
	})
	s.verb("reload", "--timeout", "30s").demand(t, 0)
	s.verb("stop", "--timeout", "30s").demand(t, 0)
	select {
	case <-s.exited:
	case <-time.After(patience):
		t.Error("it has not ended")
	}
}
