//go:build linux

package systemd

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"gapless/internal/control"
	"gapless/internal/load"
)

// The user whose systemd usersOwn starts.
const (
	ownerName = "gapless-owner"
	ownerID   = 4711
)

// asUser is a host as somebody without rights sees it.
type asUser struct{ manager }

func (u asUser) home() string { return "/home/" + ownerName }

// try runs a command as that user. systemctl asks the user's own manager.
func (u asUser) try(args ...string) (string, error) {
	switch args[0] {
	case "journalctl": // users may not read it
		return u.manager.try(args...)
	case "systemctl":
		args = append([]string{"systemctl", "--user"}, args[1:]...)
	}
	id := strconv.Itoa(ownerID)
	return u.manager.try(append([]string{"setpriv", "--reuid", id, "--regid", id, "--clear-groups", "--no-new-privs", "env", "-C", u.home(), "-i",
		"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + u.home(), "XDG_RUNTIME_DIR=/run/user/" + id}, args...)...)
}

// usersOwn: somebody without rights installs a service below a systemd of their own, which starts with the machine.
func usersOwn(t *testing.T, root *host) {
	addUser(t, root)
	// What PID 1 starts users' managers with; the target that was booted has neither.
	root.must("systemctl", "start", "dbus.socket", "systemd-logind.service")
	h := &host{t, asUser{root.manager}}
	root.must("loginctl", "enable-linger", ownerName)
	manager := fmt.Sprintf("user@%d.service", ownerID)
	root.eventually("the user's systemd runs", func() bool {
		out, err := h.try("systemctl", "is-system-running")
		return err == nil && out == "running" || out == "degraded"
	})

	a := h.install("mine", 8012, "--user")
	st := a.serving(1)
	for _, addr := range st.Addresses {
		if addr.Accept != control.AcceptSteered {
			t.Errorf("%s is not steered: %+v", addr.URL, addr)
		}
	}
	if got := root.must("ps", "-o", "uid=", "-p", a.mainPID()); strings.TrimSpace(got) != strconv.Itoa(ownerID) {
		t.Errorf("its parent process is user %s's", got)
	}
	if _, err := os.Stat(h.path("/home/" + ownerName + "/.config/systemd/user/mine.service")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(h.path("/etc/systemd/system/mine.service")); err == nil {
		t.Error("it is the machine's")
	}

	generation := 1
	lostNone(t, h.under(t, a.addr, counted(2, 20), func(int) {
		a.deploy("")
		h.must("systemctl", "reload", "mine")
		generation++
		a.serving(generation)
	}))
	lostNone(t, h.under(t, a.addr, 1, func(int) {
		a.deploy("exit 3")
		if out, err := h.try("systemctl", "reload", "mine"); err == nil {
			t.Errorf("the reload of a broken release succeeds: %s", out)
		}
		a.serving(generation)
	}))
	a.deploy("")
	generation++

	// A killed master is nobody's loss, a killed parent costs what was under way.
	lostNone(t, h.under(t, a.addr, 1, func(int) {
		before := a.serving(generation - 1).Generations[0].MasterPID
		h.must("kill", "-KILL", strconv.Itoa(before))
		h.eventually("another master", func() bool {
			st, ok := a.status()
			return ok && len(st.Generations) == 1 && st.Generations[0].MasterPID != 0 && st.Generations[0].MasterPID != before
		})
	}))
	r := h.under(t, a.addr, 1, func(int) {
		pid := a.mainPID()
		h.must("kill", "-KILL", pid)
		h.eventually("another parent", func() bool {
			now := a.mainPID()
			return now != pid && now != "0" && h.property("mine.service", "ActiveState") == "active"
		})
		a.serving(1)
	})
	if r.Drops[load.Refused] != 0 {
		t.Errorf("%d connections refused although systemd kept the socket\n%s\n%s", r.Drops[load.Refused], &r, h.journal())
	}

	// It starts with the user's systemd, as at each boot.
	root.must("systemctl", "restart", manager)
	h.eventually("it has started with the user's systemd", func() bool {
		out, err := h.try("systemctl", "is-active", "mine")
		return err == nil && out == "active"
	})
	a.serving(1)

	a.stopDrains()
	h.must(h.bin(), "uninstall", "--user", "--name", "mine")
	if out, err := h.try("systemctl", "cat", "mine.service"); err == nil {
		t.Errorf("after uninstall there is still\n%s", out)
	}
	root.must("loginctl", "disable-linger", ownerName)
}

// addUser adds the user without the tools for it, which need not be there.
func addUser(t *testing.T, h *host) {
	t.Helper()
	add := func(name, line string) {
		f, err := os.OpenFile(h.path(name), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(line + "\n"); err != nil {
			t.Fatal(err)
		}
	}
	add("/etc/passwd", fmt.Sprintf("%s:x:%d:%[2]d::/home/%[1]s:/bin/sh", ownerName, ownerID))
	add("/etc/group", fmt.Sprintf("%s:x:%d:", ownerName, ownerID))
	add("/etc/shadow", ownerName+":*:19000:0:99999:7:::")
	home := h.path("/home/" + ownerName)
	if err := os.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(home, ownerID, ownerID); err != nil {
		t.Fatal(err)
	}
}
