package notify_test

import (
	"os"
	"testing"

	"gapless/internal/notify"

	"golang.org/x/sys/unix"
)

// Some of the descriptors of a worker would be taken for all of them: whoever has room for some gets none, and the message.
func TestReceiveFDs_AllOrNone(t *testing.T) {
	s, err := notify.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := notify.Send(s.Address(), "FDSTORE=1\nFDNAME=a", null, null, null); err != nil {
		t.Fatal(err)
	}
	next, err := unix.Dup(int(null.Fd())) // the lowest that is free
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(next)
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(next) + 1, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	m, err := s.ReceiveFDs()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if err != nil || len(m.FDs) != 0 || m.Fields["FDNAME"] != "a" {
		t.Fatalf("got %+v, %v", m, err)
	}
	again, err := unix.Dup(int(null.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(again)
	if again != next {
		t.Errorf("descriptor %d is left open", next)
	}
}
