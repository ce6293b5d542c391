//go:build linux

package systemd

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"gapless/internal/control"
	"gapless/internal/load"
	"gapless/internal/unit"
)

// rootVariable names another root whose systemd is booted, too: `make test-systemd` makes one with a newer systemd than
// Debian 12 has.
const rootVariable = "GAPLESS_SYSTEMD_ROOT"

// TestSystemd runs what follows below the machine's own systemd. Where none can run, as in an unprivileged container, a
// stand-in that knows as much of it as two of the tests need takes its place; the log says which of the two it was.
func TestSystemd(t *testing.T) {
	h, reason := boot(t, "/")
	if h == nil {
		t.Logf("NO REAL SYSTEMD CAN RUN HERE, a stand-in takes its place: %s", reason)
		below(t, &host{t, newStandIn(t)}, 0)
		return
	}
	belowReal(t, h)
}

// TestSystemd_OfAnotherRoot runs the same below another systemd, if one is given.
func TestSystemd_OfAnotherRoot(t *testing.T) {
	root := os.Getenv(rootVariable)
	if root == "" {
		t.Logf("%s names no other root: nothing was tested", rootVariable)
		return
	}
	h, reason := boot(t, root)
	if h == nil {
		t.Fatalf("the systemd of %s does not run: %s", root, reason)
	}
	belowReal(t, h)
}

// TestStandIn holds that the stand-in is good enough for what it is there for.
func TestStandIn(t *testing.T) { below(t, &host{t, newStandIn(t)}, 0) }

func belowReal(t *testing.T, b *booted) {
	h := &host{t, b}
	first, _, _ := strings.Cut(h.must("systemctl", "--version"), "\n")
	var version int
	if _, err := fmt.Sscanf(first, "systemd %d", &version); err != nil {
		t.Fatalf("%q: %v", first, err)
	}
	t.Logf("below a real one: %s", first)
	below(t, h, version)
}

// below runs the tests below a systemd of this version; 0: the stand-in.
func below(t *testing.T, h *host, version int) {
	h.put(gapless, h.bin())
	for _, sub := range []struct {
		name  string
		run   func(*testing.T, *host)
		since int // the version that it needs; 0: a stand-in is enough
	}{
		{"the life of a service", lifeOfAService, 0},
		{"a killed parent", killedParent, 0},
		{"with fewer rights", fewerRights, 1},
		{"sockets of systemd", socketsOfSystemd, 1},
		{"arguments", arguments, 1},
		{"an install that fails", failingInstall, 1},
		{"stop by hand", stopByHand, 1},
		{"a user's own", usersOwn, 1},
		{"reload as a signal", reloadAsASignal, 253},
		{"a preserved store", preservedStore, 254},
	} {
		if sub.since <= version {
			t.Run(sub.name, func(t *testing.T) { sub.run(t, &host{t, h.manager}) })
		}
	}
}

// lifeOfAService goes through all that may happen to a service, under load.
func lifeOfAService(t *testing.T, h *host) {
	a := h.install("app", 8000)
	if got := h.property("app.service", "ActiveState"); got != "active" {
		t.Fatalf("after install it is %s", got)
	}
	generation := 1
	a.serving(generation)
	pid := a.mainPID()

	r := h.under(t, a.addr, counted(3, 30), func(int) {
		a.deploy("")
		h.must("systemctl", "reload", "app")
		generation++
		a.serving(generation)
	})
	lostNone(t, r)

	// A broken release: reload fails and says so, and what serves serves on.
	r = h.under(t, a.addr, 1, func(int) {
		a.deploy("echo the database is missing >&2; exit 3")
		if out, err := h.try("systemctl", "reload", "app"); err == nil {
			t.Errorf("the reload of a broken release succeeds: %s", out)
		}
		a.serving(generation)
	})
	lostNone(t, r)
	if got := h.property("app.service", "ActiveState"); got != "active" {
		t.Errorf("after the failed reload it is %s\n%s", got, h.journal())
	}
	a.deploy("")
	h.must("systemctl", "reload", "app")
	generation += 2 // that of the broken release is not used again
	a.serving(generation)

	// A killed master. After some in a row the pauses before the next one become long; another release ends the row.
	r = h.under(t, a.addr, counted(2, 20), func(round int) {
		if round > 0 && round%5 == 0 {
			h.must("systemctl", "reload", "app")
			generation++
		}
		before := a.serving(generation)
		h.must("kill", "-KILL", strconv.Itoa(before.Generations[0].MasterPID))
		h.eventually("another master", func() bool {
			st, ok := a.status()
			return ok && len(st.Generations) == 1 && st.Generations[0].MasterPID != 0 && st.Generations[0].MasterPID != before.Generations[0].MasterPID
		})
		a.serving(generation)
	})
	lostNone(t, r)
	if got := a.mainPID(); got != pid {
		t.Errorf("the main PID was %s and is %s", pid, got)
	}
	if got := h.property("app.service", "NRestarts"); got != "0" {
		t.Errorf("systemd has restarted it %s times", got)
	}

	a.stopDrains()
	h.must(h.bin(), "uninstall", "--name", "app")
	if out, err := h.try("systemctl", "cat", "app.service"); err == nil {
		t.Errorf("after uninstall there is still\n%s", out)
	}
}

// stopDrains stops it while a response is under way, which is sent to its end.
func (a *app) stopDrains() {
	a.t.Helper()
	const lines = 40
	client := &http.Client{Transport: &http.Transport{DialContext: a.dial}}
	defer client.CloseIdleConnections()
	response, err := client.Get(fmt.Sprintf("http://%s/stream?ms=50&n=%d", a.addr, lines))
	if err != nil {
		a.t.Fatal(err)
	}
	defer response.Body.Close()
	body := bufio.NewScanner(response.Body)
	if !body.Scan() {
		a.t.Fatalf("the response does not begin: %v", body.Err())
	}
	stopped := make(chan error, 1)
	go func() {
		_, err := a.try("systemctl", "stop", a.name)
		stopped <- err
	}()
	got := 1
	for body.Scan() {
		got++
	}
	if got != lines || body.Err() != nil {
		a.t.Errorf("of the response that was under way came %d of %d lines: %v\n%s", got, lines, body.Err(), a.journal())
	}
	if err := <-stopped; err != nil {
		a.t.Errorf("systemctl stop: %v", err)
	}
	for property, want := range map[string]string{"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"} {
		if got := a.property(a.name+".service", property); got != want {
			a.t.Errorf("after the stop %s is %s, want %s\n%s", property, got, want, a.journal())
		}
	}
}

// killedParent: systemd ends what is left and starts another, and what was only queued meanwhile is served by that.
func killedParent(t *testing.T, h *host) {
	a := h.install("parent", 8001)
	a.serving(1)
	n := counted(1, 10)
	r := h.under(t, a.addr, n, func(int) {
		pid := a.mainPID()
		h.must("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "parent")
		h.eventually("another parent", func() bool {
			now := a.mainPID()
			return now != pid && now != "0" && h.property("parent.service", "ActiveState") == "active"
		})
		a.serving(1)
	})
	if r.Drops[load.Refused] != 0 {
		t.Errorf("%d connections refused although systemd kept the socket\n%s\n%s", r.Drops[load.Refused], &r, h.journal())
	}
	// Each connection that was open may have lost one request, and nobody more.
	if lost := r.Drops.Total(); lost > n*(16+8) {
		t.Errorf("%d requests lost\n%s\n%s", lost, &r, h.journal())
	}
	if got := h.property("parent.service", "NRestarts"); got != strconv.Itoa(n) {
		t.Errorf("systemd has restarted it %s times", got)
	}
	h.must("systemctl", "reload", "parent")
	a.serving(2)
	a.stopDrains()
	if got := h.property("parent.service", "NFileDescriptorStore"); got != "0" {
		t.Errorf("after the stop systemd keeps %s sockets", got)
	}
	h.must(h.bin(), "uninstall", "--name", "parent")
}

// fewerRights: what a unit takes away, nothing needs.
func fewerRights(t *testing.T, h *host) {
	for i, tt := range []struct {
		name    string
		port    int
		flags   []string
		gapless string // the user of gapless; "": nobody knows
		workers string
	}{
		{"as-root", 81, []string{}, "root", "root"},
		{"workers-of-another", 82, []string{"--user", "nobody"}, "root", "nobody"},
		{"as-another", 83, []string{"--run-as", "www-data:www-data"}, "www-data", "www-data"},
		{"as-a-made-up-user", 8084, []string{"--dynamic-user"}, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := &host{t, h.manager}
			a := h.install(tt.name, tt.port, tt.flags...)
			st := a.serving(1)
			for pid, want := range map[string]string{a.mainPID(): tt.gapless, strconv.Itoa(st.Generations[0].Workers[0].PID): tt.workers} {
				got := h.must("ps", "-o", "user:32=", "-p", pid)
				if want == "" && got == "root" || want != "" && got != want {
					t.Errorf("process %s is %s's, want %q", pid, got, want)
				}
			}
			for _, addr := range st.Addresses {
				if addr.Accept != control.AcceptSteered {
					t.Errorf("%s is not steered: %+v", addr.URL, addr)
				}
			}
			lostNone(t, h.under(t, a.addr, 2, func(n int) {
				a.deploy("")
				h.must("systemctl", "reload", tt.name)
				a.serving(n + 2)
			}))
			if i%2 == 0 {
				a.stopDrains()
			}
			h.must(h.bin(), "uninstall", "--name", tt.name)
		})
	}
}

// socketsOfSystemd: they are steered as gapless's own are, and keep what comes while nothing runs.
func socketsOfSystemd(t *testing.T, h *host) {
	a := h.install("activated", 8002, "--socket")
	st := a.serving(1)
	for _, addr := range st.Addresses {
		if addr.Accept != control.AcceptSteered {
			t.Errorf("%s is not steered: %+v", addr.URL, addr)
		}
	}
	lostNone(t, h.under(t, a.addr, 2, func(n int) {
		h.must("systemctl", "reload", "activated")
		a.serving(n + 2)
	}))
	r := h.under(t, a.addr, 1, func(int) {
		h.must("systemctl", "restart", "activated")
		a.serving(1)
	})
	if r.Drops[load.Refused] != 0 {
		t.Errorf("%d connections refused during a restart\n%s", r.Drops[load.Refused], &r)
	}
	h.must(h.bin(), "uninstall", "--name", "activated")
	if conn, err := h.dial(t.Context(), "tcp", a.addr); err == nil {
		_ = conn.Close()
		t.Error("after uninstall something listens")
	}
}

// arguments arrive as they were written, whatever is in them.
func arguments(t *testing.T, h *host) {
	want := []string{"", " ", ";", "a b", "%h", "100%", "$HOME", "${HOME}", "$$", `"`, "'", `\`, `\x41`, "\n", "\t\x01\x7f", "ä→", "{fd}", "-", "@", "#x",
		"--x=y z", strings.Repeat("long ", 40), "trailing\\"}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h.put(self, h.folder()+"/printer")
	text, err := unit.Service(unit.Settings{Name: "arguments", Binary: h.folder() + "/printer", Run: want, Command: want})
	if err != nil {
		t.Fatal(err)
	}
	begin := strings.Index(text, "ExecStart=")
	end := strings.Index(text, "\n# ")
	for end < begin {
		end += 1 + strings.Index(text[end+1:], "\n# ")
	}
	oneshot := "[Service]\nType=oneshot\nEnvironment=" + roleVariable + "=arguments HOME=/elsewhere\nStandardOutput=truncate:" + h.folder() + "/printed\n" + text[begin:end] + "\n"
	if err := os.WriteFile(h.path("/etc/systemd/system/arguments.service"), []byte(oneshot), 0o644); err != nil {
		t.Fatal(err)
	}
	h.must("systemctl", "daemon-reload")
	h.must("systemctl", "start", "arguments")
	printed, err := os.ReadFile(h.path(h.folder() + "/printed"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	if err := json.Unmarshal(printed, &got); err != nil {
		t.Fatalf("%v: %s", err, printed)
	}
	whole := slices.Concat([]string{"run"}, want, []string{"--control", "/run/gapless/arguments.sock", "--"}, want)
	if !slices.Equal(got, whole) {
		t.Errorf("got  %q\nwant %q", got, whole)
	}
}

// printArguments is the program that arguments starts.
func printArguments() int {
	if err := json.NewEncoder(os.Stdout).Encode(os.Args[1:]); err != nil {
		return 1
	}
	return 0
}

// failingInstall leaves nothing.
func failingInstall(t *testing.T, h *host) {
	out, err := h.try(h.bin(), "install", "--name", "failing", "--port", "8005", "--", "/bin/false")
	if err == nil || !strings.Contains(out, "gapless: install: systemctl enable --now failing.service: ") || strings.Contains(out, "\n") {
		t.Errorf("the install of what cannot start: %v, %s", err, out)
	}
	if out, err := h.try("systemctl", "cat", "failing.service"); err == nil {
		t.Errorf("it is still there:\n%s", out)
	}
	if out := h.must("systemctl", "list-units", "--all", "--plain", "--no-legend", "failing.service"); out != "" {
		t.Errorf("systemd remembers it: %s", out)
	}
	if _, err := os.Stat(h.path("/etc/systemd/system/multi-user.target.wants/failing.service")); err == nil {
		t.Error("it is still enabled")
	}
}

// stopByHand: who stops a service behind systemd's back is told that it comes back.
func stopByHand(t *testing.T, h *host) {
	a := h.install("byhand", 8006)
	pid := a.mainPID()
	out := h.must(h.bin(), "stop", "--control", a.control())
	if want := "systemd starts byhand.service again; to stop it for good: systemctl stop byhand.service"; !strings.Contains(out, want) {
		t.Errorf("gapless stop says %q, want %q", out, want)
	}
	h.eventually("systemd starts it again", func() bool {
		now := a.mainPID()
		return now != pid && now != "0" && h.property("byhand.service", "ActiveState") == "active"
	})
	a.serving(1)
	h.must(h.bin(), "uninstall", "--name", "byhand")
}
