//go:build linux

package systemd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// reloadAsASignal: with Type=notify-reload, systemctl reload returns when the upgrade is over. How it ended, systemd cannot
// be told; the status says it.
func reloadAsASignal(t *testing.T, h *host) {
	a := h.install("signal", 8010, "--notify-reload")
	a.serving(1)
	pid, generation := a.mainPID(), 1
	lostNone(t, h.under(t, a.addr, counted(3, 30), func(int) {
		a.deploy("")
		h.must("systemctl", "reload", "signal")
		generation++
		// The new generation is in charge, though the one before may still drain.
		st, ok := a.status()
		if !ok || len(st.Generations) == 0 || st.LastUpgrade == nil || !st.LastUpgrade.OK || st.LastUpgrade.Generation != generation {
			t.Errorf("after the reload to generation %d the status is %+v", generation, st)
		}
		a.serving(generation)
	}))

	lostNone(t, h.under(t, a.addr, 1, func(int) {
		a.deploy("echo the database is missing >&2; exit 3")
		if out, err := h.try("systemctl", "reload", "signal"); err != nil {
			t.Errorf("systemd has a way to say that the reload failed: %s", out)
		}
		if got := h.property("signal.service", "StatusText"); !strings.Contains(got, "exit status 3") {
			t.Errorf("after an upgrade that was aborted the status is %q", got)
		}
		a.serving(generation)
	}))
	generation++ // is not used again
	if got := h.property("signal.service", "ActiveState") + " " + h.property("signal.service", "SubState"); got != "active running" {
		t.Errorf("after the reload that was aborted it is %s\n%s", got, h.journal())
	}
	a.deploy("")
	h.must("systemctl", "reload", "signal")
	generation++
	a.serving(generation)
	if got := a.mainPID(); got != pid {
		t.Errorf("the main PID was %s and is %s", pid, got)
	}
	a.stopDrains()
	h.must(h.bin(), "uninstall", "--name", "signal")
}

// preservedStore: with FileDescriptorStorePreserve=yes systemd would keep what is in the store over a stop as well. A stop
// in order takes it out, so that no client waits in a queue that nobody serves, and nothing piles up.
func preservedStore(t *testing.T, h *host) {
	a := h.install("preserved", 8011)
	a.serving(1)
	environ, err := os.ReadFile(h.path(filepath.Join("/proc", a.mainPID(), "environ")))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count("\x00"+string(environ), "\x00FDSTORE="); n != 1 {
		t.Errorf("$FDSTORE is there %d times", n)
	}
	dropIn := h.path("/etc/systemd/system/preserved.service.d/preserve.conf")
	if err := os.MkdirAll(filepath.Dir(dropIn), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dropIn, []byte("[Service]\nFileDescriptorStorePreserve=yes\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	h.must("systemctl", "daemon-reload")
	stored := h.property("preserved.service", "NFileDescriptorStore")
	if stored == "0" {
		t.Error("nothing is stored")
	}
	for range counted(2, 10) {
		h.must("systemctl", "restart", "preserved")
		a.serving(1)
		if now := h.property("preserved.service", "NFileDescriptorStore"); now != stored {
			t.Errorf("after a restart %s descriptors are stored, before it were %s\n%s", now, stored, h.journal())
		}
		lostNone(t, h.under(t, a.addr, 1, func(int) {
			h.must("systemctl", "reload", "preserved")
			a.serving(2)
		}))
	}
	h.must("systemctl", "stop", "preserved")
	if got := h.property("preserved.service", "NFileDescriptorStore"); got != "0" {
		t.Errorf("after a stop %s descriptors are stored, whose ends nobody serves", got)
	}
	if conn, err := h.dial(t.Context(), "tcp", a.addr); err == nil {
		_ = conn.Close()
		t.Error("after a stop something listens")
	}
	h.must("systemctl", "start", "preserved")
	a.serving(1)
	h.must(h.bin(), "uninstall", "--name", "preserved")
}
