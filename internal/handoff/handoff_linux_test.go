package handoff

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func queue(t *testing.T) (*Receiver, *Sender) {
	t.Helper()
	rf, sf, err := NewPair()
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewReceiver(rf)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSender(sf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close(); _ = s.Close() })
	return r, s
}

// pair returns both ends of a TCP connection.
func pair(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close(); _ = server.Close() })
	return client, server
}

func give(t *testing.T, s *Sender, c *net.TCPConn, name string, pending []byte) error {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	return s.Send(rc, name, pending)
}

func echo(t *testing.T, client net.Conn, server net.Conn) {
	t.Helper()
	if _, err := server.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(client, got); err != nil || string(got) != "hello" {
		t.Fatalf("read %q, %v", got, err)
	}
}

func TestQueue_ConnectionSurvivesItsSender(t *testing.T) {
	for _, pending := range [][]byte{nil, []byte("GET / HTTP/1.1\r\n"), bytes.Repeat([]byte("x"), MaxPending)} {
		t.Run(fmt.Sprint(len(pending)), func(t *testing.T) {
			r, s := queue(t)
			client, server := pair(t)
			if err := give(t, s, server, "web", pending); err != nil {
				t.Fatal(err)
			}
			_ = server.Close()
			c, err := r.Receive()
			if err != nil {
				t.Fatal(err)
			}
			if c.Listener != "web" || !bytes.Equal(c.Pending, pending) {
				t.Fatalf("got listener %q and %d pending bytes", c.Listener, len(c.Pending))
			}
			nc, err := c.NetConn()
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			echo(t, client, nc)
		})
	}
}

// A number is closed once: a second time it may be somebody else's.
func TestConn_ClosesItsDescriptorOnce(t *testing.T) {
	for name, end := range map[string]func(*Conn){
		"closed": func(c *Conn) { _ = c.Close() },
		"made a net.Conn": func(c *Conn) {
			if nc, err := c.NetConn(); err == nil {
				_ = nc.Close()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, s := queue(t)
			_, server := pair(t)
			if err := give(t, s, server, "web", nil); err != nil {
				t.Fatal(err)
			}
			c, err := r.Receive()
			if err != nil {
				t.Fatal(err)
			}
			fd := c.FD()
			end(c)
			if err := syscall.Dup3(int(os.Stdin.Fd()), fd, syscall.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			_ = c.Close()
			if _, err := c.NetConn(); err == nil {
				t.Error("a connection that is closed became a net.Conn")
			}
			if err := syscall.Close(fd); err != nil {
				t.Errorf("the number's next owner lost it: %v", err)
			}
		})
	}
}

func TestQueue_FullKeepsTheConnection(t *testing.T) {
	r, s := queue(t)
	client, server := pair(t)
	n := 0
	for ; ; n++ {
		err := give(t, s, server, "web", nil)
		if errors.Is(err, ErrFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if n > 100_000 {
			t.Fatal("the queue never fills")
		}
	}
	if n < 250 {
		t.Errorf("only %d connections fit", n)
	}
	echo(t, client, server)
	if err := s.WaitRoom(time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("room in a full queue: %v", err)
	}
	for range n {
		c, err := r.TryReceive()
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	if _, err := r.TryReceive(); !errors.Is(err, ErrEmpty) {
		t.Errorf("empty queue: %v", err)
	}
	if err := s.WaitRoom(10 * time.Second); err != nil {
		t.Errorf("no room in an empty queue: %v", err)
	}
	if err := give(t, s, server, "web", nil); err != nil {
		t.Errorf("send after the queue was emptied: %v", err)
	}
}

func TestMove(t *testing.T) {
	src, in := queue(t)
	dst, out := queue(t)
	const n = 20
	clients := make([]net.Conn, n)
	for i := range n {
		client, server := pair(t)
		clients[i] = client
		if err := give(t, in, server, "web", fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
		_ = server.Close()
	}
	if moved, err := Move(out, src); moved != n || err != nil {
		t.Fatalf("moved %d, %v", moved, err)
	}
	for i := range n {
		c, err := dst.TryReceive()
		if err != nil {
			t.Fatal(err)
		}
		if string(c.Pending) != fmt.Sprint(i) {
			t.Errorf("connection %d came with %q", i, c.Pending)
		}
		nc, err := c.NetConn()
		if err != nil {
			t.Fatal(err)
		}
		echo(t, clients[i], nc)
		_ = nc.Close()
	}
}

func TestMove_FullTargetLosesNothing(t *testing.T) {
	src, in := queue(t)
	dst, out := queue(t)
	_, server := pair(t)
	full := 0
	for give(t, out, server, "fill", nil) == nil {
		full++
	}
	for i := range 3 {
		if err := give(t, in, server, "web", fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if moved, err := Move(out, src); moved != 0 || !errors.Is(err, ErrFull) {
			t.Fatalf("moved %d, %v", moved, err)
		}
	}
	for range full {
		c, err := dst.TryReceive()
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	if moved, err := Move(out, src); moved != 3 || err != nil {
		t.Fatalf("moved %d, %v", moved, err)
	}
	for i := range 3 {
		c, err := dst.TryReceive()
		if err != nil || string(c.Pending) != fmt.Sprint(i) {
			t.Fatalf("connection %d: %+v, %v", i, c, err)
		}
		_ = c.Close()
	}
}

func TestReceive_EndAndDeadline(t *testing.T) {
	r, s := queue(t)
	if err := r.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Receive(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("deadline: %v", err)
	}
	_ = r.SetReadDeadline(time.Time{})
	_ = s.Close()
	if _, err := r.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("closed: %v", err)
	}
}

func TestReceive_BadPacketIsPassedOver(t *testing.T) {
	r, s := queue(t)
	_, server := pair(t)
	if err := s.c.Send([]byte("nonsense"), -1); err != nil {
		t.Fatal(err)
	}
	if err := give(t, s, server, "web", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Receive(); !errors.Is(err, ErrPacket) {
		t.Errorf("bad packet: %v", err)
	}
	c, err := r.Receive()
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

func TestAppend_Limits(t *testing.T) {
	for name, tc := range map[string]struct{ name, pending int }{
		"name": {MaxName + 1, 0}, "pending": {0, MaxPending + 1},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Append(nil, strings.Repeat("x", tc.name), make([]byte, tc.pending))
			if !errors.Is(err, ErrPacket) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	ok, _ := Append(nil, "web", []byte("GET /"))
	f.Add(ok)
	f.Add([]byte{})
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{1, 255, 0, 0, 255, 255, 255, 255, 1})
	f.Fuzz(func(t *testing.T, p []byte) {
		name, pending, err := Parse(p)
		if err != nil {
			if !errors.Is(err, ErrPacket) {
				t.Fatalf("error is not ErrPacket: %v", err)
			}
			return
		}
		again, err := Append(nil, name, pending)
		if err != nil {
			t.Fatal(err)
		}
		// Reserved bytes are ignored when read and zero when written.
		again[2], again[3] = p[2], p[3]
		if !bytes.Equal(again, p) {
			t.Fatalf("%x became %x", p, again)
		}
	})
}
