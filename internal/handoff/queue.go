package handoff

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"gapless/internal/seqpacket"
)

var (
	// ErrFull means that the queue has no room at present. The connection is
	// still the caller's.
	ErrFull = seqpacket.ErrFull
	// ErrEmpty means that no connection waits.
	ErrEmpty = errors.New("no connection waits in the queue")
	// ErrLost means that a connection could not be received, for want of
	// descriptors, and that the kernel has closed it.
	ErrLost = errors.New("a connection in the queue was lost")
)

// sendBuffer makes room for about 2,700 waiting connections where the
// system's limit (net.core.wmem_max) allows it, and for a packet with the
// most pending bytes in any case.
const sendBuffer = 2 << 20

// NewPair makes a queue. Its maker keeps both ends open for as long as
// connections may wait in it, whatever becomes of the workers.
func NewPair() (recv, send *os.File, err error) { return seqpacket.Pair(sendBuffer) }

// Sender is the end of a queue that connections are given to. Its methods may
// be called concurrently.
type Sender struct{ c *seqpacket.Conn }

// NewSender takes over f; it closes f if it fails.
func NewSender(f *os.File) (*Sender, error) {
	c, err := seqpacket.New(f)
	if err != nil {
		return nil, fmt.Errorf("handoff: %w", err)
	}
	return &Sender{c}, nil
}

var packets = sync.Pool{New: func() any { return new([]byte) }}

// Send gives away the connection behind rc. After success the caller closes
// its copy with close(2) alone; after an error the connection is still the
// caller's. It never blocks: with ErrFull, or with ETOOMANYREFS, trying again
// later may help.
func (s *Sender) Send(rc syscall.RawConn, listener string, pending []byte) error {
	return s.send(listener, pending, func(p []byte) error { return s.c.SendFrom(p, rc) })
}

// Pass is Send for a connection that was received and has not been made a net.Conn.
func (s *Sender) Pass(c *Conn) error {
	return s.send(c.Listener, c.Pending, func(p []byte) error { return s.c.Send(p, c.fd) })
}

func (s *Sender) send(listener string, pending []byte, send func(packet []byte) error) error {
	buf, _ := packets.Get().(*[]byte)
	defer packets.Put(buf)
	p, err := Append((*buf)[:0], listener, pending)
	if err != nil {
		return err
	}
	*buf = p
	if err := send(p); err != nil {
		return fmt.Errorf("hand off a connection: %w", err)
	}
	return nil
}

// WaitRoom waits at most d for room in the queue.
func (s *Sender) WaitRoom(d time.Duration) error {
	_ = s.c.SetWriteDeadline(time.Now().Add(d))
	return s.c.WaitWritable()
}

// Shut has every later Send fail, also those of other processes that hold this
// end: for good, and not with ErrFull. What is in the queue can still be received.
func (s *Sender) Shut() error { return s.c.ShutWrite() }

// File returns a duplicate of this end, to pass to another process.
func (s *Sender) File() (*os.File, error) { return s.c.Dup() }

// Close closes this end.
func (s *Sender) Close() error { return s.c.Close() }

// Conn is a connection that was received.
type Conn struct {
	Listener string // the listener that it came from, as in LISTEN_FDNAMES
	Pending  []byte // what the client has sent and nobody has served: to be read before the socket
	fd       int
}

// FD is the socket's descriptor, which stays c's. The runtime does not poll it.
func (c *Conn) FD() int { return c.fd }

// NetConn makes a connection for the runtime poller of the socket, not yet
// with the pending bytes. c needs no Close then. That takes descriptors for a
// moment: after an error (EMFILE, for one) c is as it was, and may be asked
// again.
func (c *Conn) NetConn() (net.Conn, error) {
	if c.fd < 0 {
		return nil, fmt.Errorf("take over a connection: %w", os.ErrClosed)
	}
	// Package net takes no descriptor over, it duplicates that of a file, which closes its own: so that has another one.
	f, err := seqpacket.DupFD(c.fd, "handoff-conn")
	if err != nil {
		return nil, fmt.Errorf("take over a connection: %w", err)
	}
	nc, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		return nil, fmt.Errorf("take over a connection: %w", err)
	}
	_ = c.Close()
	return nc, nil
}

// Close closes the connection. It does nothing where that was done before, or NetConn has taken it over: the number may
// be another file's by now.
func (c *Conn) Close() error {
	if c.fd >= 0 {
		seqpacket.CloseFD(c.fd)
		c.fd = -1
	}
	return nil
}

// Receiver is the end of a queue that connections are taken from. Its methods
// may be called concurrently, and several processes may receive from a queue.
type Receiver struct {
	c    *seqpacket.Conn
	mu   sync.Mutex // guards buf and held
	buf  []byte
	held *Conn // received by Move, which found no room for it: the next one to be received
}

// NewReceiver takes over f; it closes f if it fails.
func NewReceiver(f *os.File) (*Receiver, error) {
	c, err := seqpacket.New(f)
	if err != nil {
		return nil, fmt.Errorf("handoff: %w", err)
	}
	return &Receiver{c: c, buf: make([]byte, maxPacket)}, nil
}

// Receive waits for a connection until the read deadline
// (os.ErrDeadlineExceeded). The error is io.EOF when nobody can send any
// more; after one that wraps ErrPacket or ErrLost it may be called again.
// Only one call of Receive at a time makes progress.
func (r *Receiver) Receive() (*Conn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.take(r.c.Receive)
}

// Wait waits until a connection may be received, or until the read deadline
// (os.ErrDeadlineExceeded), and leaves it in the queue. Of several that wait
// any may take it first.
func (r *Receiver) Wait() error {
	r.mu.Lock()
	held := r.held != nil
	r.mu.Unlock()
	if held {
		return nil
	}
	return r.c.WaitReadable()
}

// TryReceive is Receive without waiting: ErrEmpty if no connection waits.
func (r *Receiver) TryReceive() (*Conn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.try()
}

func (r *Receiver) try() (*Conn, error) {
	c, err := r.take(r.c.TryReceive)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = ErrEmpty
	}
	return c, err
}

func (r *Receiver) take(receive func([]byte) (int, int, error)) (*Conn, error) {
	if c := r.held; c != nil {
		r.held = nil
		return c, nil
	}
	n, fd, err := receive(r.buf)
	switch {
	case errors.Is(err, seqpacket.ErrTruncated):
		return nil, fmt.Errorf("%w: %w", ErrLost, err)
	case err != nil:
		return nil, err
	case fd < 0:
		return nil, fmt.Errorf("%w: it carries no connection", ErrPacket)
	}
	listener, pending, err := Parse(r.buf[:n])
	if err != nil {
		seqpacket.CloseFD(fd)
		return nil, err
	}
	return &Conn{Listener: listener, Pending: bytes.Clone(pending), fd: fd}, nil
}

// SetReadDeadline bounds Receive; the zero time lifts the bound.
func (r *Receiver) SetReadDeadline(t time.Time) error { return r.c.SetReadDeadline(t) }

// File returns a duplicate of this end, to pass to another process.
func (r *Receiver) File() (*os.File, error) { return r.c.Dup() }

// Close closes this end, and a connection that Move could not place.
func (r *Receiver) Close() error {
	err := r.c.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held != nil {
		_ = r.held.Close()
		r.held = nil
	}
	return err
}

// Move moves all connections that wait in src to dst, without waiting, and
// says how many. When dst takes no more (ErrFull, for one) the connection in
// hand stays with src: call Move again later, or keep src. Packets that
// cannot be read are passed over and reported in err once all others are moved.
func Move(dst *Sender, src *Receiver) (moved int, err error) {
	src.mu.Lock()
	defer src.mu.Unlock()
	var bad error
	for {
		c, err := src.try()
		switch {
		case errors.Is(err, ErrEmpty) || errors.Is(err, io.EOF): // nothing waits, or will again
			return moved, bad
		case errors.Is(err, ErrPacket) || errors.Is(err, ErrLost):
			bad = errors.Join(bad, err)
			continue
		case err != nil:
			return moved, errors.Join(bad, err)
		}
		if err := dst.Pass(c); err != nil {
			src.held = c
			return moved, errors.Join(bad, err)
		}
		_ = c.Close()
		moved++
	}
}
