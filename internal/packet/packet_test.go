package packet_test

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"gapless/internal/packet"

	"golang.org/x/sys/unix"
)

type message struct {
	Kind string
	N    int
}

func pair(t *testing.T) (a, b *packet.Conn) {
	t.Helper()
	fa, fb, err := packet.Pair()
	if err != nil {
		t.Fatal(err)
	}
	if a, err = packet.New(fa); err != nil {
		t.Fatal(err)
	}
	if b, err = packet.New(fb); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestConn_CarriesMessagesAndFiles(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := a.Send(message{"hello", 7}, w); err != nil {
		t.Fatal(err)
	}
	w.Close()
	var m message
	files, err := b.Receive(&m)
	if err != nil || m != (message{"hello", 7}) || len(files) != 1 {
		t.Fatalf("got %v, %d files, %v", m, len(files), err)
	}
	if _, err := files[0].WriteString("x"); err != nil {
		t.Fatal(err)
	}
	files[0].Close()
	if got, err := io.ReadAll(r); string(got) != "x" || err != nil {
		t.Fatalf("through the received descriptor: %q, %v", got, err)
	}
}

func TestConn_EndIsEOF(t *testing.T) {
	a, b := pair(t)
	a.Close()
	if _, err := b.Receive(&message{}); !errors.Is(err, io.EOF) {
		t.Fatalf("got %v, want io.EOF", err)
	}
}

func TestConn_DeadlineLeavesMessagesForTheNextReader(t *testing.T) {
	a, b := pair(t)
	if err := b.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := a.Send(message{"kept", 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Receive(&message{}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v, want a deadline", err)
	}
	f, err := b.File()
	if err != nil {
		t.Fatal(err)
	}
	next, err := packet.New(f)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	var m message
	if _, err := next.Receive(&m); err != nil || m.Kind != "kept" {
		t.Fatalf("got %v, %v", m, err)
	}
}

func TestConn_RefusesTooManyFiles(t *testing.T) {
	a, _ := pair(t)
	files := make([]*os.File, packet.MaxFiles+1)
	for i := range files {
		files[i] = os.Stdin
	}
	if err := a.Send(message{}, files...); !errors.Is(err, unix.EMSGSIZE) {
		t.Fatalf("got %v, want EMSGSIZE", err)
	}
}

// O_NONBLOCK belongs to the description that all holders share: one that clears it freezes the others' accept loops.
func TestDup_KeepsNonblock(t *testing.T) {
	a, b, err := packet.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	d, err := packet.Dup(a, "copy")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, f := range []*os.File{a, d} {
		fd, err := packet.Descriptor(f)
		if err != nil {
			t.Fatal(err)
		}
		if fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || fl&unix.O_NONBLOCK == 0 {
			t.Fatalf("flags %#x, %v: O_NONBLOCK is gone", fl, err)
		}
	}
}

func TestConn_TrySendDoesNotWaitForRoom(t *testing.T) {
	a, b := pair(t)
	sent := 0
	for ; ; sent++ {
		err := a.TrySend(message{"try", sent})
		if errors.Is(err, packet.ErrFull) {
			break
		}
		if err != nil || sent > 1e6 {
			t.Fatalf("after %d packets: %v", sent, err)
		}
	}
	for n := range sent {
		var m message
		if _, err := b.Receive(&m); err != nil || m != (message{"try", n}) {
			t.Fatalf("got %v, %v; want number %d", m, err, n)
		}
	}
	if err := a.TrySend(message{"again", 0}); err != nil {
		t.Errorf("when there is room again: %v", err)
	}
	if err := a.SetWriteDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := a.TrySend(message{"behind a Send's deadline", 0}); err != nil {
		t.Errorf("what does not wait is not late: %v", err)
	}
	b.Close()
	if err := a.TrySend(message{"late", 0}); err == nil || errors.Is(err, packet.ErrFull) {
		t.Errorf("to a closed end: %v", err)
	}
}
