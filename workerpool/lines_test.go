package workerpool

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
)

// stuck takes nothing until it is released.
type stuck struct {
	release chan struct{}
	mu      sync.Mutex
	got     bytes.Buffer
}

func (s *stuck) Write(p []byte) (int, error) {
	<-s.release
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got.Write(p)
}

func TestLines_KeepTheirOrderAndPrefix(t *testing.T) {
	var out bytes.Buffer
	l := NewLines(&out)
	for i := range 100 {
		l.put("[w] ", fmt.Appendf(nil, "line %d", i))
	}
	l.Flush()
	l.Close()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 100 || lines[0] != "[w] line 0" || lines[99] != "[w] line 99" {
		t.Fatalf("%d lines, %q … %q", len(lines), lines[0], lines[len(lines)-1])
	}
}

// A terminal that is stopped, or a full pipe, must not block a worker: what does not fit is counted.
func TestLines_NeverBlockWhoPrints(t *testing.T) {
	s := &stuck{release: make(chan struct{})}
	l := NewLines(s)
	line := bytes.Repeat([]byte("x"), 1023)
	const n = 3000 // three times what waits at most
	for range n {
		l.put("", line)
	}
	close(s.release)
	l.Close()
	text := s.got.String()
	written := strings.Count(text, string(line))
	dropped := 0
	for line := range strings.Lines(text) {
		var n int
		if _, err := fmt.Sscanf(line, "gapless: %d lines", &n); err == nil {
			dropped += n
		}
	}
	if written+dropped != n || dropped == 0 {
		t.Fatalf("%d written, %d said to be dropped, of %d", written, dropped, n)
	}
}

// What is not taken in time is given up, and told of by whoever writes next; nobody waits for ever.
func TestLines_GiveUpOnWhatIsBlocked(t *testing.T) {
	s := &stuck{release: make(chan struct{})}
	l := NewLines(s)
	for i := range 10 {
		l.put("", fmt.Appendf(nil, "line %d", i))
	}
	_, _ = l.Write([]byte("two\nlines, one cut"))
	l.lost(5)
	l.put("", []byte("after those"))
	dropped := l.Flush()
	if dropped != 18 && dropped != 17 { // the first may be in the writer's hands
		t.Errorf("%d lines dropped", dropped)
	}
	l.put("", []byte("after"))
	l.Close() // still blocked
	close(s.release)
	<-l.done

	var out bytes.Buffer
	next := NewLines(&out)
	next.lost(dropped)
	next.put("", []byte("more"))
	next.Close()
	if want := fmt.Sprintf("gapless: %d lines of workers were dropped, as they could not be written fast enough\nmore\n", dropped); out.String() != want {
		t.Errorf("the next wrote %q, want %q", out.String(), want)
	}
}

// The place where lines are missing is where it is said.
func TestLines_SayWhereLinesAreMissing(t *testing.T) {
	s := &stuck{release: make(chan struct{})}
	l := NewLines(s)
	l.put("", bytes.Repeat([]byte("a"), linesRoom/4))
	l.put("", bytes.Repeat([]byte("b"), linesRoom/4))
	l.put("", bytes.Repeat([]byte("c"), linesRoom))
	l.put("", []byte("d"))
	close(s.release)
	l.Close()
	text := s.got.String()
	b, notice, d := strings.Index(text, "b\n"), strings.Index(text, "gapless: 1 lines"), strings.Index(text, "\nd\n")
	if b < 0 || notice < b || d < notice {
		t.Errorf("b ends at %d, the notice is at %d, d at %d", b, notice, d)
	}
}
