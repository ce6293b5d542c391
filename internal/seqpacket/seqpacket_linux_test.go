package seqpacket

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// soon ends a test that would hang; no test asserts it.
const soon = time.Minute

// pair makes two ends that are closed with the test, and whose Receive ends.
func pair(t *testing.T) (a, b *Conn) {
	t.Helper()
	fa, fb, err := Pair(0)
	if err != nil {
		t.Fatal(err)
	}
	return wrap(t, fa), wrap(t, fb)
}

func wrap(t *testing.T, f *os.File) *Conn {
	t.Helper()
	c, err := New(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	if err := c.SetWriteDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	return c
}

func send(t *testing.T, c *Conn, packets ...string) {
	t.Helper()
	for _, p := range packets {
		if err := c.Send([]byte(p), -1); err != nil {
			t.Fatal(err)
		}
	}
}

// receives demands that these packets come next, without a descriptor.
func receives(t *testing.T, c *Conn, packets ...string) {
	t.Helper()
	for _, want := range packets {
		buf := make([]byte, 100)
		if n, fd, err := c.Receive(buf); err != nil || fd != -1 || string(buf[:n]) != want {
			t.Fatalf("got %q, descriptor %d, %v; want %q", buf[:n], fd, err, want)
		}
	}
}

// ends demands that nothing comes any more, however often one asks.
func ends(t *testing.T, c *Conn) {
	t.Helper()
	for range 2 {
		if n, fd, err := c.Receive(make([]byte, 10)); n != 0 || fd != -1 || !errors.Is(err, io.EOF) {
			t.Errorf("got %d bytes, descriptor %d, %v; want %v", n, fd, err, io.EOF)
		}
	}
}

// pipe returns its reading end, and its writing end as a bare descriptor that
// the test closes.
func pipe(t *testing.T) (r *os.File, w int) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	r = os.NewFile(uintptr(p[0]), "pipe")
	t.Cleanup(func() { _ = r.Close() })
	if err := r.SetReadDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	return r, p[1]
}

// flags demands what the package's invariants say of every descriptor.
func flags(t *testing.T, f *os.File) {
	t.Helper()
	rc, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = rc.Control(func(fd uintptr) {
		if got, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != nil || got&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor flags %#x, %v: not close-on-exec", got, err)
		}
		if got, err := unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil || got&unix.O_NONBLOCK == 0 {
			t.Errorf("status flags %#x, %v: blocking", got, err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestPair(t *testing.T) {
	a, b := pair(t)
	flags(t, a.File())
	flags(t, b.File())
	send(t, a, "one", "two", strings.Repeat("x", 100))
	send(t, b, "back")
	receives(t, b, "one", "two", strings.Repeat("x", 100)) // packets, not a stream
	receives(t, a, "back")

	d, err := b.Dup()
	if err != nil {
		t.Fatal(err)
	}
	flags(t, d)
	dup := wrap(t, d)
	_ = b.Close()
	send(t, a, "to whoever still holds it")
	receives(t, dup, "to whoever still holds it")
}

func TestPair_SendBuffer(t *testing.T) {
	room := func(size int) (n int) {
		t.Helper()
		fa, fb, err := Pair(size)
		if err != nil {
			t.Fatal(err)
		}
		a, b := wrap(t, fa), wrap(t, fb)
		for {
			switch err := a.Send(make([]byte, 1000), -1); {
			case errors.Is(err, ErrFull):
				_ = b.Close()
				return n
			case err != nil:
				t.Fatal(err)
			case n > 10_000:
				t.Fatal("it never fills")
			}
			n++
		}
	}
	// Far below the system's limit, so that these hold without any right.
	if small, large := room(10_000), room(60_000); small == 0 || large <= 2*small {
		t.Errorf("%d packets fit into the small buffer and %d into the large one", small, large)
	}
}

func TestNew(t *testing.T) {
	if _, err := New(nil); err == nil {
		t.Error("no file is taken for a connection")
	}

	stream, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(stream[1])
	f := os.NewFile(uintptr(stream[0]), "a stream")
	if _, err := New(f); err == nil || !strings.Contains(err.Error(), "a stream") || !strings.Contains(err.Error(), "SOCK_SEQPACKET") {
		t.Errorf("of a stream: %v", err)
	}
	if err := f.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the refused file was left open: %v", err)
	}
}

// What a worker inherits may be blocking, and must not be so for long: Close has to wake a Receive.
func TestNew_OfABlockingDescriptor(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a := wrap(t, os.NewFile(uintptr(fds[0]), "inherited"))
	b := wrap(t, os.NewFile(uintptr(fds[1]), "inherited"))
	flags(t, a.File())
	flags(t, b.File())
	send(t, a, "hello")
	receives(t, b, "hello")

	result := make(chan error)
	go func() {
		_, _, err := b.Receive(make([]byte, 10))
		result <- err
	}()
	_ = b.Close() // before or after it has begun to wait
	if err := <-result; !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v, want %v", err, os.ErrClosed)
	}
}

func TestConn_Next(t *testing.T) {
	a, b := pair(t)
	if n := b.Next(); n != 0 || b.Pending() {
		t.Errorf("of nothing: %d, pending: %v", n, b.Pending())
	}
	_, w := pipe(t)
	defer unix.Close(w)
	sizes := []int{1, 70_000, 3}
	for _, n := range sizes {
		if err := a.Send(make([]byte, n), w); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range sizes {
		for range 2 { // it takes nothing away
			if n := b.Next(); n != want || !b.Pending() {
				t.Fatalf("the next one is %d long, want %d; pending: %v", n, want, b.Pending())
			}
		}
		n, fd, err := b.Receive(make([]byte, want)) // there is room for exactly this much
		if n != want || fd < 0 || err != nil {
			t.Fatalf("received %d bytes, descriptor %d, %v; want %d bytes", n, fd, err, want)
		}
		CloseFD(fd)
	}
	if n := b.Next(); n != 0 || b.Pending() {
		t.Errorf("after the last: %d, pending: %v", n, b.Pending())
	}
}

func TestConn_PassesRights(t *testing.T) {
	a, b := pair(t)
	r, w := pipe(t)
	file, err := DupFD(w, "pipe")
	unix.Close(w)
	if err != nil {
		t.Fatal(err)
	}
	flags(t, file)
	rc, err := file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.SendFrom([]byte("a pipe"), rc); err != nil {
		t.Fatal(err)
	}
	_ = file.Close() // what is on its way stays open
	buf := make([]byte, 10)
	n, fd, err := b.Receive(buf)
	if err != nil || fd < 0 || string(buf[:n]) != "a pipe" {
		t.Fatalf("got %q, descriptor %d, %v", buf[:n], fd, err)
	}
	got := os.NewFile(uintptr(fd), "received")
	flags(t, got)
	if _, err := got.WriteString("through it"); err != nil {
		t.Fatal(err)
	}
	_ = got.Close()
	if text, err := io.ReadAll(r); string(text) != "through it" || err != nil {
		t.Errorf("read %q, %v", text, err)
	}
}

// A descriptor that came with what was thrown away must not stay open: nobody knows of it.
func TestConn_Truncated(t *testing.T) {
	for _, tc := range []struct {
		name  string
		bytes int
		fds   int
	}{
		{"bytes", 11, 0},
		{"bytes with a descriptor", 11, 1},
		{"two descriptors", 10, 2},
		{"as many as there is room for", 10, maxFDs},
		{"more than there is room for", 10, maxFDs + 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := pair(t)
			r, w := pipe(t)
			var oob []byte
			if tc.fds > 0 {
				many := make([]int, tc.fds)
				for i := range many {
					many[i] = w
				}
				oob = unix.UnixRights(many...)
			}
			err := a.rc.Control(func(s uintptr) {
				if err := unix.Sendmsg(int(s), make([]byte, tc.bytes), oob, nil, unix.MSG_NOSIGNAL); err != nil {
					t.Error(err)
				}
			})
			unix.Close(w)
			if err != nil {
				t.Fatal(err)
			}
			send(t, a, "whole")
			if n, fd, err := b.Receive(make([]byte, 10)); n != 0 || fd != -1 || !errors.Is(err, ErrTruncated) {
				t.Errorf("got %d bytes, descriptor %d, %v; want %v", n, fd, err, ErrTruncated)
			}
			if _, err := r.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("the descriptor is still open: %v", err)
			}
			receives(t, b, "whole")
		})
	}
}

func TestConn_DoesNotWait(t *testing.T) {
	a, b := pair(t)
	if n, fd, err := b.TryReceive(make([]byte, 10)); n != 0 || fd != -1 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("received of nothing: %d bytes, descriptor %d, %v", n, fd, err)
	}
	if err := b.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Receive(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("received after the deadline: %v", err)
	}
	if err := b.WaitReadable(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("waited after the deadline: %v", err)
	}
	if err := b.SetReadDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	send(t, a, "packet")
	if err := b.WaitReadable(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	if n, _, err := b.TryReceive(buf); string(buf[:n]) != "packet" || err != nil {
		t.Errorf("got %q, %v", buf[:n], err)
	}
}

func TestConn_Full(t *testing.T) {
	a, b := pair(t)
	sent := 0
	for err := error(nil); !errors.Is(err, ErrFull); sent++ {
		if err = a.Send([]byte("packet"), -1); err != nil && !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
	}
	sent-- // the last one was refused
	if err := a.SetWriteDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := a.WaitWritable(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("there is room after all: %v", err)
	}
	if err := a.SetWriteDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	for range sent {
		receives(t, b, "packet")
	}
	if b.Pending() {
		t.Error("a packet that was refused has come")
	}
	if err := a.WaitWritable(); err != nil {
		t.Fatal(err)
	}
	send(t, a, "another")
	receives(t, b, "another")
}
