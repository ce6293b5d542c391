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
