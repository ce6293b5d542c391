package notify_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"gapless/internal/notify"
)

func TestBarrier(t *testing.T) {
	s, err := notify.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := notify.Barrier(s.Address(), 10*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("who does not act is waited for: %v", err)
	}
	done := make(chan error, 1)
	if err := notify.Send(s.Address(), "STATUS=before"); err != nil {
		t.Fatal(err)
	}
	go func() { done <- notify.Barrier(s.Address(), time.Minute) }()
	for _, want := range []string{"BARRIER", "STATUS", "BARRIER"} {
		m, err := s.ReceiveFDs()
		if err != nil || m.Fields[want] == "" {
			t.Fatalf("got %+v, %v, want %s", m, err, want)
		}
		select {
		case err := <-done:
			t.Fatalf("the barrier was over before %s had been acted on: %v", want, err)
		default:
		}
		notify.CloseFDs(m.FDs)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
