package seqpacket

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestConn_ClosedPeer(t *testing.T) {
	for _, tc := range []struct {
		name   string
		unread []string // what the peer has not read: the kernel tells of a reset first
	}{
		{"that has read all", nil},
		{"that has not read all", []string{"lost", "as well"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := pair(t)
			send(t, b, tc.unread...)
			send(t, a, "first", "second one")
			_ = a.Close()
			// The length of what the peer said is known in spite of the reset.
			if n := b.Next(); n != len("first") {
				t.Errorf("the next one is %d long, want %d", n, len("first"))
			}
			receives(t, b, "first")
			if n := b.Next(); n != len("second one") {
				t.Errorf("the next one is %d long, want %d", n, len("second one"))
			}
			receives(t, b, "second one")
			if n := b.Next(); n != 0 || b.Pending() {
				t.Errorf("at the end: %d, pending: %v", n, b.Pending())
			}
			ends(t, b)
			if err := b.Send([]byte("too late"), -1); !errors.Is(err, unix.EPIPE) {
				t.Errorf("sent: %v, want %v", err, unix.EPIPE)
			}
		})
	}

	t.Run("that has not read all, received at once", func(t *testing.T) {
		a, b := pair(t)
		send(t, b, "lost")
		send(t, a, "first", "second one")
		_ = a.Close()
		receives(t, b, "first", "second one")
		ends(t, b)
	})

	t.Run("that had said nothing", func(t *testing.T) {
		a, b := pair(t)
		send(t, b, "lost")
		_ = a.Close()
		ends(t, b)
	})

	t.Run("this end", func(t *testing.T) {
		a, _ := pair(t)
		_ = a.Close()
		buf := make([]byte, 10)
		for name, call := range map[string]func() error{
			"Send":         func() error { return a.Send(buf, -1) },
			"Receive":      func() error { _, _, err := a.Receive(buf); return err },
			"TryReceive":   func() error { _, _, err := a.TryReceive(buf); return err },
			"WaitReadable": a.WaitReadable,
			"WaitWritable": a.WaitWritable,
			"ShutWrite":    a.ShutWrite,
			"Dup":          func() error { _, err := a.Dup(); return err },
			"Close, again": a.Close,
			"a deadline":   func() error { return a.SetReadDeadline(time.Time{}) },
		} {
			if err := call(); !errors.Is(err, os.ErrClosed) {
				t.Errorf("%s: got %v, want %v", name, err, os.ErrClosed)
			}
		}
		if n := a.Next(); n != 0 || a.Pending() {
			t.Errorf("next: %d, pending: %v", n, a.Pending())
		}
	})
}

func TestConn_ShutWrite(t *testing.T) {
	a, b := pair(t)
	d, err := a.Dup()
	if err != nil {
		t.Fatal(err)
	}
	other := wrap(t, d) // of the same end, as in another process
	send(t, a, "last")
	if err := other.ShutWrite(); err != nil {
		t.Fatal(err)
	}
	if err := a.Send([]byte("late"), -1); !errors.Is(err, unix.EPIPE) {
		t.Errorf("sent: %v, want %v", err, unix.EPIPE)
	}
	receives(t, b, "last")
	ends(t, b)
	send(t, b, "the other way")
	receives(t, a, "the other way")
}
