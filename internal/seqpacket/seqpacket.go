// Package seqpacket sends and receives packets with at most one descriptor
// each over AF_UNIX SOCK_SEQPACKET sockets, through the runtime poller.
//
// Invariants: sending never blocks; a descriptor that was received is either
// returned or closed, never lost; every descriptor made here is close-on-exec
// and O_NONBLOCK is set and never cleared, as both live in an open file
// description that other processes share.
package seqpacket

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

var (
	// ErrNotSupported is returned on systems without SOCK_SEQPACKET pairs.
	ErrNotSupported = errors.New("seqpacket sockets are not supported on this system")
	// ErrFull means that the packet was not sent because the receiver has not
	// kept up. Nothing was lost; the caller may try again.
	ErrFull = errors.New("the receiver's queue is full")
	// ErrTruncated means that a packet did not fit, or that its descriptor
	// could not be installed because the process has none left. The kernel has
	// thrown the rest away.
	ErrTruncated = errors.New("the packet was truncated")
)

// Conn is one end of a pair. One goroutine may receive while others send.
type Conn struct {
	f  *os.File
	rc syscall.RawConn
}

// New takes over f, one end of a pair, in whatever state it was inherited.
// It closes f if it fails.
func New(f *os.File) (*Conn, error) {
	if f == nil {
		return nil, errors.New("seqpacket: no file")
	}
	name := f.Name()
	if err := f.SetDeadline(time.Time{}); err != nil {
		// The file was made while its descriptor was blocking, so the runtime
		// does not poll it: only a descriptor of our own helps.
		d, err := Dup(f)
		_ = f.Close()
		if err != nil {
			return nil, fmt.Errorf("seqpacket %s: %w", name, err)
		}
		f = d
	}
	rc, err := f.SyscallConn()
	if err == nil {
		err = checkType(rc)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("seqpacket %s: %w", name, err)
	}
	return &Conn{f: f, rc: rc}, nil
}

// Dup returns a close-on-exec duplicate of f that the runtime polls. Unlike
// f.Fd it leaves f and the description that both share non-blocking.
func Dup(f *os.File) (*os.File, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	dup, err := DupRaw(rc, f.Name())
	return dup, asClosed(f, err)
}

// asClosed is err, or os.ErrClosed if that comes of f being closed: what the
// raw connection of a closed file answers is nothing that errors.Is can tell.
func asClosed(f *os.File, err error) error {
	if err == nil {
		return nil
	}
	if _, serr := f.Stat(); errors.Is(serr, os.ErrClosed) {
		return os.ErrClosed
	}
	return err
}

// File is the file of this end, for passing on with Dup. Callers must not use
// its Fd method.
func (c *Conn) File() *os.File { return c.f }

// Dup returns a duplicate of this end, for another process or owner.
func (c *Conn) Dup() (*os.File, error) { return Dup(c.f) }

// SetReadDeadline bounds Receive; the zero time lifts the bound.
func (c *Conn) SetReadDeadline(t time.Time) error { return asClosed(c.f, c.f.SetReadDeadline(t)) }

// SetWriteDeadline bounds WaitWritable; the zero time lifts the bound.
func (c *Conn) SetWriteDeadline(t time.Time) error { return asClosed(c.f, c.f.SetWriteDeadline(t)) }

// Close closes this end. It wakes a blocked Receive with os.ErrClosed, which
// whatever is called later returns, too.
func (c *Conn) Close() error { return c.f.Close() }
