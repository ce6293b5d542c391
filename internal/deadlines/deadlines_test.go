package deadlines

import (
	"strings"
	"testing"
	"time"
)

func defaults() Settings {
	return Settings{StartTimeout: 60 * time.Second, Settle: 2 * time.Second, DrainTimeout: 30 * time.Second, Listen: []string{"0.0.0.0:8000"}}
}

func TestLimits(t *testing.T) {
	const forever = time.Duration(-1)
	for _, tt := range []struct {
		name        string
		change      func(*Settings)
		start, stop time.Duration
	}{
		{"the defaults", func(*Settings) {}, 75 * time.Second, 42 * time.Second},
		{"no limit of a start", func(s *Settings) { s.StartTimeout = 0 }, forever, 42 * time.Second},
		{"no limit of a drain", func(s *Settings) { s.DrainTimeout = 0 }, 75 * time.Second, forever},
		{"a limit of steps that there are not", func(s *Settings) { s.BeforeStartTimeout = time.Hour }, 75 * time.Second, 42 * time.Second},
		{"steps", func(s *Settings) { s.BeforeStart, s.BeforeStartTimeout = true, time.Minute }, 135 * time.Second, 42 * time.Second},
		{"steps without a limit", func(s *Settings) { s.BeforeStart = true }, forever, 42 * time.Second},
		{"all that a stop may take", func(s *Settings) { s.LameDuck, s.DrainExtra = 5*time.Second, 20*time.Second }, 75 * time.Second, 67 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := defaults()
			tt.change(&s)
			for _, of := range []struct {
				name  string
				limit func() (time.Duration, bool)
				want  time.Duration
			}{{"start", s.StartLimit, tt.start}, {"stop", s.StopLimit, tt.stop}} {
				got, ok := of.limit()
				if !ok {
					got = forever
				}
				if got != of.want {
					t.Errorf("the limit of a %s is %v, want %v", of.name, got, of.want)
				}
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	for _, tt := range []struct {
		name     string
		platform Platform
		change   func(*Settings)
		grace    time.Duration
		want     []string // a part of each, in order
	}{
		{"systemd with the defaults", Systemd, func(*Settings) {}, 0, nil},
		{"systemd does not care for loopback", Systemd, func(s *Settings) { s.Listen = []string{"127.0.0.1:8000"} }, 0, nil},
		{"a long drain", Systemd, func(s *Settings) { s.DrainTimeout = 5 * time.Minute }, 0,
			[]string{"a stop may take 5m12s (--settle 2s + --drain-timeout 5m + 10s to end), and TimeoutStopSec is 1m30s by default: set it to 312 or more"}},
		{"a long drain that the unit knows", Systemd, func(s *Settings) { s.DrainTimeout = 5 * time.Minute }, 6 * time.Minute, nil},
		{"a unit that is too short", Systemd, func(*Settings) {}, 20 * time.Second, []string{"TimeoutStopSec is 20s: set it to 42 or more"}},
		{"a drain for ever", Systemd, func(s *Settings) { s.DrainTimeout = 0 }, 0, []string{"--drain-timeout 0 waits for ever"}},
		{"a start for ever", Systemd, func(s *Settings) { s.StartTimeout = 0 }, 0, []string{"--start-timeout 0 waits for ever"}},
		{"steps for ever", Systemd, func(s *Settings) { s.BeforeStart = true }, 0, []string{"set --before-start-timeout"}},
		{"long steps", Systemd, func(s *Settings) { s.BeforeStart, s.BeforeStartTimeout = true, 10*time.Minute }, 0,
			[]string{"a start may take 11m15s, and TimeoutStartSec is 1m30s by default: set it to 675 or more"}},
		{"a spread longer than the drain", Systemd, func(s *Settings) { s.CloseSpread = time.Minute }, 0, []string{"--close-spread 1m is longer"}},
		{"kubernetes with the defaults", Kubernetes, func(*Settings) {}, 0,
			[]string{"terminationGracePeriodSeconds is 30s by default: set it to 42 or more", "set --lame-duck 5s", "--health is not set"}},
		{"kubernetes as it should be", Kubernetes, func(s *Settings) { s.LameDuck, s.Health = 5*time.Second, ":9000" }, time.Minute, nil},
		{"nobody can reach it", Kubernetes, func(s *Settings) {
			s.LameDuck, s.Health, s.Listen = 5*time.Second, "127.0.0.1:9000", []string{"127.0.0.1:8000", "[::1]:80", "unix:/run/app.sock", "[::]:443"}
		}, time.Minute, []string{"127.0.0.1:8000 cannot be reached", "[::1]:80 cannot be reached", "--health 127.0.0.1:9000 cannot be reached"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := defaults()
			tt.change(&s)
			got := Warnings(tt.platform, s, tt.grace)
			if len(got) != len(tt.want) {
				t.Fatalf("%d warnings, want %d:\n%s", len(got), len(tt.want), strings.Join(got, "\n"))
			}
			for i, want := range tt.want {
				if !strings.Contains(got[i], want) || strings.Contains(got[i], "\n") {
					t.Errorf("warning %d is\n%s\nwant\n%s", i, got[i], want)
				}
			}
		})
	}
}
