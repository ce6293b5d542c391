//go:build linux

package test

import (
	"regexp"
	"strings"
	"testing"

	"gapless/internal/control"
)

// While an old generation drains, status and the verb that waits for its end tell how old its oldest request is.
func TestProgress_TellsTheOldestRequest(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	slow := s.ask("/slow?ms=4000")
	s.inFlight(slow)
	upgrade := s.verbLater("upgrade", "--wait-drained")
	s.becomes("the age of the request is known", func(st control.Status) bool {
		for _, g := range st.Generations {
			for _, w := range g.Workers {
				if g.Generation == 1 && w.Oldest != nil && *w.Oldest > 0 && *w.Oldest < 60 && w.InFlight != nil && *w.InFlight == 1 {
					return strings.Contains(g.WhyAlive, "the oldest request is")
				}
			}
		}
		return false
	})
	v := upgrade.wait().demand(t, 0)
	if !regexp.MustCompile(`(?m)^draining, 1 left, oldest request [1-9]\d*s$`).MatchString(v.stderr) {
		t.Errorf("the progress is:\n%s", v.stderr)
	}
	slow.answer(t).generation(1)
	s.stop()
}

// Who waits for a reload or a scaling is told how far it has got.
func TestProgress_CountsTheWorkers(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"-w", "3"}})
	for _, tt := range []struct {
		verb []string
		want string // of stderr
	}{
		{[]string{"reload"}, "workers ready 0/3\nworkers ready 1/3\nworkers ready 2/3\nworkers ready 3/3\n"},
		{[]string{"scale", "5"}, "workers ready 0/2\nworkers ready 1/2\nworkers ready 2/2\n"},
		{[]string{"scale", "3"}, "draining, 2 left\ndraining, 1 left\ndraining, 0 left\n"},
	} {
		if v := s.verb(tt.verb[0], tt.verb[1:]...).demand(t, 0); v.stderr != tt.want {
			t.Errorf("%s tells:\n%swant:\n%s", strings.Join(tt.verb, " "), v.stderr, tt.want)
		}
	}
	s.stop()
}
