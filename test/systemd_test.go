//go:build linux

package test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gapless/internal/procfs"
)

const (
	told     = `RELOADING=1 MONOTONIC_USEC=NOW ` + headline
	complete = `READY=1 `
)

// What systemd is told of a life without incident: nothing too early, nothing twice, each thing in one datagram.
func TestSystemd_HearsOfAllThatHappens(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	s := m.start(options{})
	first, _, _ := strings.Cut(s.verb("status").demand(t, 0).stdout, "\n")
	m.exactly(true, `READY=1 MAINPID=PID `+serving(1, 2))

	s.signal(syscall.SIGUSR2)
	m.exactly(true, told+`generation 1 upgrading with 2 of 2 workers`, complete+serving(2, 2))
	s.upgraded(2)
	s.settled(2, 2)

	s.signal(syscall.SIGHUP)
	m.exactly(true, told+`generation 2 reloading with 2 of 2 workers`, complete+serving(2, 2))
	s.verb("reload").demand(t, 0)
	m.exactly(true, told+`generation 2 reloading with 2 of 2 workers`, complete+serving(2, 2))
	s.verb("upgrade").demand(t, 0)
	m.exactly(true, told+`generation 2 upgrading with 2 of 2 workers`, complete+serving(3, 2))

	s.verb("scale", "3").demand(t, 0)
	m.await("another number of workers", func(text string) bool { return strings.HasSuffix(text, "generation 3 serving with 3 of 3 workers") })
	last, _, _ := strings.Cut(s.verb("status").demand(t, 0).stdout, "\n")
	if texts := m.texts(); texts[len(texts)-1] != "STATUS="+last {
		t.Errorf("status says %q and systemd shows %q", last, texts[len(texts)-1])
	}
	m.mark()
	if want := strings.Replace(last, "generation 3 serving with 3 of 3", "generation 1 serving with 2 of 2", 1); first != want {
		t.Errorf("status said %q, want %q", first, want)
	}

	s.signal(syscall.SIGTERM)
	s.exits(0)
	m.exactly(true, `STOPPING=1`)
}

// A failed operation is over as well, and the status says why.
func TestSystemd_HearsWhyAnUpgradeWasAborted(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	a := newApp(t)
	s := m.start(options{command: []string{a.path}})
	m.mark()
	a.role("exits-3")
	s.refused(2)
	m.exactly(true, told+`generation 1 upgrading with 2 of 2 workers`, complete+serving(1, 2)+`; upgrade to generation 2 aborted .*exit status 3.*`)
	s.signal(syscall.SIGHUP)
	m.exactly(true, told+`generation 1 reloading with 2 of 2 workers`, complete+serving(1, 2)+`; reload failed: .*exit status 3.*`)
	a.good()
	s.upgrade(3)
	m.exactly(true, told+`generation 1 upgrading with 2 of 2 workers`, complete+serving(3, 2))
	s.stop()
}

// Nor does a master that is killed leave systemd waiting.
func TestSystemd_HearsOfTheEndWhenTheMasterIsKilled(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	s := m.start(options{flags: []string{"--before-start", "test $GAPLESS_GENERATION = 1 || sleep 60"}})
	m.mark()
	s.signal(syscall.SIGUSR2)
	s.await("steps run", func(e event) bool { return e.Msg == "Running previous step" && e.Generation == 2 })
	kill(s.first)
	s.replaced(s.first)
	m.exactly(true, told+`generation 1 upgrading with 2 of 2 workers`, headline+`no master is in charge`,
		complete+serving(1, 2)+`; upgrade aborted: the master was killed meanwhile; generation 1 serves on`)
	s.settled(1, 2)
	s.stop()
}

// gate is a file that a test makes when something may go on.
type gate struct{ path string }

func newGate(t testing.TB) gate { return gate{filepath.Join(publicDir(t), "gate")} }

func (g gate) open(t testing.TB) { writeTo(t, g.path, "") }

// wait is a command that waits for it.
func (g gate) wait() string { return "while ! test -e " + g.path + "; do sleep 0.05; done" }

// patienceAsked waits until patience has been asked for n times, and demands that it was in time.
func (m *manager) patienceAsked(n int) {
	m.t.Helper()
	const wish = "EXTEND_TIMEOUT_USEC=15000000"
	var at []time.Time
	eventually(m.t, patience, "patience is asked for", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		at = nil
		for _, d := range m.said {
			if d.text == wish {
				at = append(at, d.at)
			}
		}
		return len(at) >= n
	})
	for i := 1; i < len(at); i++ {
		if d := at[i].Sub(at[i-1]); d > 15*time.Second {
			m.t.Errorf("%v between two wishes for patience of 15 s", d)
		}
	}
}

// A start, an upgrade and a drain that take long are not taken for hung.
func TestSystemd_IsAskedForPatience(t *testing.T) {
	t.Run("by a start", func(t *testing.T) {
		t.Parallel()
		m, g := newManager(t), newGate(t)
		s := prepare(t)
		m.run(s, options{flags: []string{"--before-start", g.wait()}})
		m.patienceAsked(3)
		if texts := strings.Join(m.texts(), "\n"); strings.Contains(texts, "READY") {
			t.Errorf("ready before the previous steps were over:\n%s", texts)
		}
		g.open(t)
		m.ready(s)
		s.stop()
	})
	t.Run("by an upgrade", func(t *testing.T) {
		t.Parallel()
		m, g := newManager(t), newGate(t)
		s := m.start(options{flags: []string{"--before-start", "test $GAPLESS_GENERATION = 1 && exit; " + g.wait()}})
		m.mark()
		s.signal(syscall.SIGUSR2)
		m.patienceAsked(3)
		g.open(t)
		s.upgraded(2)
		m.exactly(true, told+`generation 1 upgrading with 2 of 2 workers`, complete+serving(2, 2))
		s.stop()
	})
	t.Run("by a drain", func(t *testing.T) {
		t.Parallel()
		m := newManager(t)
		s := m.start(options{})
		slow := s.ask("/slow?ms=6000")
		s.inFlight(slow)
		m.mark()
		s.signal(syscall.SIGTERM)
		m.patienceAsked(2)
		slow.answer(t)
		s.exits(0)
		m.exactly(true, `STOPPING=1`)
	})
}

// beats counts what the watchdog has heard.
func (m *manager) beats() (n int) {
	for _, text := range m.texts() {
		if text == "WATCHDOG=1" {
			n++
		}
	}
	return n
}

// falters waits until the watchdog hears nothing any more.
func (m *manager) falters(why string) {
	m.t.Helper()
	eventually(m.t, patience, "the watchdog hears nothing: "+why, func() bool {
		m.mark()
		pause(4 * m.watchdog) // it would have heard eight times
		return m.beats() == 0
	})
}

func (m *manager) beatsAgain(why string) {
	m.t.Helper()
	m.mark()
	eventually(m.t, patience, "the watchdog hears again: "+why, func() bool { return m.beats() >= 2 })
}

// The watchdog hears only while the master in charge answers and one of its workers is ready.
func TestSystemd_WatchdogHearsOnlyWhileAllIsWell(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	m.watchdog = slower(300 * time.Millisecond)
	broken := newGate(t)
	s := m.start(options{command: []string{"/bin/sh", "-c", "test -e " + broken.path + " && exit 3; exec " + built.gapless + " app"}})
	m.beatsAgain("all is well")

	signal(t, s.first, syscall.SIGSTOP)
	m.falters("the master is stopped")
	signal(t, s.first, syscall.SIGCONT)
	m.beatsAgain("the master goes on")

	broken.open(t)
	for _, w := range s.workers(1) {
		kill(w.PID)
	}
	m.falters("no worker is ready")
	if err := os.Remove(broken.path); err != nil {
		t.Fatal(err)
	}
	m.beatsAgain("the workers are back")

	s.killMaster()
	m.beatsAgain("another master is in charge")
	s.upgrade(2)
	m.beatsAgain("another generation serves")
	s.stop()
}

// What strangers say to the parent reaches nobody.
func TestSystemd_HearsNoStrangers(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	s := m.start(options{})
	m.mark()
	env, err := procfs.Environ(s.first)
	if err != nil {
		t.Fatal(err)
	}
	var address string
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "NOTIFY_SOCKET="); ok {
			address = v
		}
		for _, name := range []string{"WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"} {
			if strings.HasPrefix(kv, name+"=") {
				t.Errorf("the master has %s", kv)
			}
		}
	}
	if address == "" || address == m.path {
		t.Fatalf("the masters speak to %q", address)
	}
	c, err := net.Dial("unixgram", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, text := range []string{"READY=1", "STOPPING=1", "RELOADING=1", "STATUS=owned", "EXTEND_TIMEOUT_USEC=1", "FDSTORE=1\nFDNAME=lane/x#0", "X_GAPLESS_GENERATION=9"} {
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	s.await("strangers are noticed", func(e event) bool { return e.Msg == "notify message from a stranger ignored" && e.PID == os.Getpid() })
	s.upgrade(2)
	m.exactly(true, told+`generation 1 upgrading with 2 of 2 workers`, complete+serving(2, 2))
	s.stop()
	m.exactly(true, `STOPPING=1`)
}
