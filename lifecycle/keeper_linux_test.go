package lifecycle

import (
	"strings"
	"testing"

	"gapless/internal/notify"

	"go.uber.org/zap"
)

// A command does not begin before the parent knows its mark: a parent that is busy would read it when the master is dead,
// and a dead process's words are nobody's.
func TestKeeper_GuardWaitsUntilTheParentKnows(t *testing.T) {
	parent, err := notify.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer parent.Close()
	t.Setenv("NOTIFY_SOCKET", parent.Address())
	k := newKeeper(zap.NewNop())
	done := make(chan error, 1)
	go func() { done <- k.Guard("mark") }()
	m, err := parent.ReceiveFDs()
	if err != nil || !strings.HasSuffix(m.Fields["FDNAME"], "step/mark") {
		t.Fatalf("got %+v, %v", m, err)
	}
	notify.CloseFDs(m.FDs)
	if m, err = parent.ReceiveFDs(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		t.Fatalf("it did not wait: %v", err)
	default:
	}
	notify.CloseFDs(m.FDs)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
