//go:build linux

package test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/creack/pty"

	"gapless/internal/procfs"
)

// footprint is what gapless itself occupies.
type footprint struct {
	usage
	pss int64 // of parent and master together, in bytes
}

func (s *server) footprint() footprint {
	s.t.Helper()
	f := footprint{usage: s.descriptors()}
	for _, pid := range []int{s.pid(), s.masters()[0].PID} {
		m, err := procfs.ReadMemory(pid)
		if err != nil {
			s.t.Fatal(err)
		}
		f.pss += m.PSS
	}
	return f
}

// Upgrades leave nothing behind: no process, no descriptor, no memory.
func TestUpgrade_ManyInARowLeaveNothing(t *testing.T) {
	s := start(t, options{})
	n := counted(15, 100)
	const warm = 5
	var after footprint
	for i := range n {
		s.upgrade(i + 2)
		s.settled(i+2, 2) // how many lanes there are depends on how many generations drain at a time
		if i+1 == warm {
			after = s.footprint()
		}
	}
	end := s.footprint()
	t.Logf("after %d upgrades %v, %d KiB; after %d: %v, %d KiB", warm, after.usage, after.pss>>10, n, end.usage, end.pss>>10)
	// The next upgrade may come before the master has noticed that a worker is gone and its lane free: then it opens one
	// more, of which there can be as many as workers for each address. The parent keeps them, too.
	const spare = 4
	if end.parent > after.parent+spare || end.master > after.master+spare {
		t.Errorf("after %d upgrades %v; after %d: %v", warm, after.usage, n, end.usage)
	}
	if limit := after.pss + after.pss/4 + 2<<20; end.pss > limit {
		t.Errorf("memory has grown from %d to %d KiB", after.pss>>10, end.pss>>10)
	}
	s.stop()
}

// screen is what a terminal has shown.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *screen) shows(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.text.String(), text)
}

// On a terminal: the banner says how to upgrade and to stop, and both work. Ctrl-C reaches the whole foreground group,
// but only the parent acts on it, also after an upgrade.
func TestTerminal_UpgradeAndCtrlC(t *testing.T) {
	t.Parallel()
	master, terminal, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	var seen screen
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			_, _ = seen.Write(buf[:n])
			if err != nil {
				return // the last process has closed the terminal
			}
		}
	})
	defer wg.Wait()
	s := launch(t, options{flags: []string{"--log-format", "console"}, stdio: terminal})
	terminal.Close()
	shows := func(text string) {
		t.Helper()
		if !became(patience, func() bool { return seen.shows(text) || s.gone() }) || !seen.shows(text) {
			t.Fatalf("the terminal does not show %q but\n%s", text, seen.text.String())
		}
	}
	shows("Application startup complete")
	shows(fmt.Sprintf("kill -USR2 %d", s.pid()))
	shows(s.addr)
	slow := s.ask("/slow?ms=800")
	s.inFlight(slow)
	s.signal(syscall.SIGUSR2)
	shows("Upgrade complete")
	if _, err := master.WriteString("\x03"); err != nil {
		t.Fatal(err)
	}
	shows("Shutting down")
	slow.answer(t).generation(1)
	s.exits(0)
	if os.Getenv("NO_COLOR") == "" && seen.shows(`"level"`) {
		t.Error("JSON on a terminal")
	}
}
