package main

import (
	"strings"
	"testing"
	"time"

	"gapless/internal/control"
)

func TestStatusText(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	n, s := 2, 61.5
	got := statusText(control.Status{
		Version: "1.0.0", ParentPID: 10, State: control.StateDegraded, Detail: "1 of 2 workers serve", DegradedReason: "worker 1 keeps \x1b[31mfailing",
		Addresses: []control.Address{{Name: "web", URL: "http://127.0.0.1:80", Accept: "steered"}, {Name: "admin", URL: "unix:/run/a.sock", Accept: "plain", Reason: "a unix socket"}},
		Preview:   &control.Preview{URL: "http://127.0.0.1:90", Address: "web", Generation: 3},
		Workers:   2, MemoryBytes: 3 << 20, MemoryLimit: 1 << 30, Warnings: []string{"two generations would not fit"},
		LastUpgrade: &control.LastUpgrade{Generation: 3, Reason: "exit status 1", Tail: []string{"boom"}, TookSeconds: 0.25, At: now.Add(-90 * time.Second)},
		Generations: []control.Generation{
			{Generation: 2, Revision: 2, State: "serving", MasterPID: 11, AgeSeconds: 3700, ReleaseDir: "/srv/7", Command: []string{"app", "{fd}"}, Binary: "/usr/bin/gapless", Version: "1.0.0",
				Workers: []control.Worker{{Slot: 0, PID: 12, Revision: 2, State: "ready", Since: now.Add(-2 * time.Hour), AgeSeconds: 7200, MemoryPSS: 3 << 20, Established: 5, InFlight: &n, Lanes: []control.Lane{{Address: "web", Index: 1, Weight: 1}}}}},
			{Generation: 1, State: "draining", AgeSeconds: 90000, WhyAlive: "worker 0 answers 2 requests",
				Workers: []control.Worker{{Slot: 0, PID: 9, State: "draining", Since: now.Add(-time.Minute), AgeSeconds: 90000, Restarts: 1, Oldest: &s, Reason: "upgrade"}}},
		},
	}, now)
	want := `gapless 1.0.0, pid 10: 1 of 2 workers serve
degraded: worker 1 keeps [31mfailing
warning: two generations would not fit
listens  http://127.0.0.1:80  web    steered
listens  unix:/run/a.sock     admin  plain: a unix socket
preview  http://127.0.0.1:90  web    generation 3
workers  2 wanted
memory   3.0 MiB of 1.00 GiB
upgrade  generation 3 was aborted after 250ms, 1m30s ago: exit status 1
  | boom

generation 2, revision 2: serving, 1h01m old, master 11
  release     /srv/7
  command     app {fd}
  gapless     /usr/bin/gapless 1.0.0
  WORKER  PID  STATE  FOR    AGE    RESTARTS  MEMORY   OPEN  QUEUED  IN FLIGHT  LANES
  0       12   ready  2h00m  2h00m  0         3.0 MiB  5     0       2          web#1

generation 1: draining, 1d01h old
  still here  worker 0 answers 2 requests
  command     the built-in app
  WORKER  PID  STATE     FOR    AGE    RESTARTS  MEMORY  OPEN  QUEUED  OLDEST  WHY
  0       9    draining  1m00s  1d01h  1         -       0     0       1m01s   upgrade
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestStatusText_Staged(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tt := range []struct {
		staged control.Staged
		want   string
	}{
		{control.Staged{Generation: 4, State: control.GenerationStaged, Percent: 5, Steps: []int{25, 50}, Until: now.Add(29 * time.Second), Next: "it gets 25 %"},
			"staged   generation 4 gets 5 % of new connections; next, it gets 25 % in 29s\n"},
		{control.Staged{Generation: 4, State: control.GenerationStaged, Next: "it is promoted, shifted or aborted by order"},
			"staged   generation 4 gets 0 % of new connections; next, it is promoted, shifted or aborted by order\n"},
		{control.Staged{Generation: 4, State: control.GenerationWindow, Percent: 100, Until: now.Add(-time.Second), Next: "it takes charge"},
			"window   generation 4 gets 100 % of new connections; next, it takes charge in 0s\n"},
	} {
		if got := statusText(control.Status{State: control.StateStaged, Staged: &tt.staged}, now); !strings.Contains(got, tt.want) {
			t.Errorf("got\n%s\nwant in it\n%s", got, tt.want)
		}
	}
}

func TestProgress(t *testing.T) {
	slot, oldest := 1, 12.4
	events := []control.Event{
		{Kind: control.KindUpgrade, State: "steps", Text: "migrate"},
		{Kind: control.KindUpgrade, State: "starting", Generation: 2},
		{Kind: control.KindWorker, State: "ready", Worker: &slot},
		{Kind: control.KindUpgrade, State: "ready", Ready: 1, Total: 2},
		{Kind: control.KindUpgrade, State: "ready", Ready: 1, Total: 2},
		{Kind: control.KindUpgrade, State: "ready", Ready: 2, Total: 2},
		{Kind: control.KindUpgrade, State: "commit", Generation: 2},
		{Kind: control.KindUpgrade, State: "drain", Ready: 1, Total: 2, Text: "one", Oldest: &oldest},
		{Kind: control.KindUpgrade, State: "aborted", Reason: "why"},
		{Kind: control.KindLog, Text: "a\x07b"},
		{Kind: control.KindReload},
	}
	for _, tt := range []struct {
		name             string
		terminal, colour bool
		want             string
	}{
		{"a file", false, false, "previous steps (migrate)\nstarting generation 2\nworkers ready 1/2\nworkers ready 2/2\n" +
			"commit: new connections go to generation 2\ndraining, 1 left, oldest request 12s\nupgrade aborted\nab\nreload\n"},
		{"a terminal", true, true, "previous steps (migrate)\nstarting generation 2\nworkers ready 1/2\r\x1b[Kworkers ready 2/2\n" +
			"commit: new connections go to generation 2\ndraining, 1 left, oldest request 12s\n\x1b[31mupgrade aborted\x1b[0m\nab\nreload\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			p := &progress{out: &out, terminal: tt.terminal, colour: tt.colour}
			for _, e := range events {
				p.show(e)
			}
			p.end()
			if got := out.String(); got != tt.want {
				t.Errorf("got %q\nwant %q", got, tt.want)
			}
		})
	}
}
