package lifecycle

import (
	"testing"

	"gapless/internal/pidfd"
)

func TestReaped(t *testing.T) {
	var r reaped
	if _, ok := r.status(7); ok {
		t.Error("it knows of an end that never was")
	}
	first, second := pidfd.Status{Known: true, Code: 1}, pidfd.Status{Known: true, Code: 2}
	r.add(7, first)
	r.add(7, second) // the PID was used again
	if got, ok := r.status(7); !ok || got != second {
		t.Errorf("got %v, want the last end %v", got, second)
	}
	for pid := range remembered {
		r.add(1000+pid, first)
	}
	if got, ok := r.status(7); ok {
		t.Errorf("it grows: %v is still there", got)
	}
	if got, ok := r.status(1000); !ok || got != first {
		t.Errorf("got %v, %v", got, ok)
	}
}
