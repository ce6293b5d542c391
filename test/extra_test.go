//go:build linux

package test

import (
	"strings"
	"testing"
	"time"
)

// What still moves bytes when the time to drain is over may go on for a while; what stands still may not.
func TestDrain_ExtraTimeIsForWhatStillMoves(t *testing.T) {
	const timeout = 3 * time.Second
	for _, tt := range []struct {
		name, path string
		finishes   bool
	}{
		{"a download that goes on", "/stream?n=250&ms=20", true}, // 5 s
		{"a request that nothing is heard of", "/slow?ms=60000", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := start(t, options{flags: []string{"-w", "1", "--drain-timeout", timeout.String(), "--drain-extra", "20s"}})
			l := s.ask(tt.path)
			s.inFlight(l)
			asked := time.Now()
			s.upgrade(2)
			<-l.done
			took := time.Since(asked)
			s.settled(2, 1)
			killed := len(s.out.find(msg("Worker killed"))) > 0
			if tt.finishes {
				if r := l.answer(t); killed || !strings.HasSuffix(r.body, "\n249\n") || took < timeout {
					t.Errorf("killed %v after %v, and the answer ends with %q", killed, took, r.body[max(0, len(r.body)-10):])
				}
			} else if l.err == nil || !killed || took < timeout-100*time.Millisecond || took > 15*time.Second {
				t.Errorf("killed %v, ended after %v with %v, want its death after %v", killed, took, l.err, timeout)
			}
			s.stop()
		})
	}
}
