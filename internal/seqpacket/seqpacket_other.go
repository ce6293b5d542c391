//go:build !linux

package seqpacket

import (
	"os"
	"syscall"
)

// Pair makes a connected pair on Linux.
func Pair(int) (a, b *os.File, err error) { return nil, nil, ErrNotSupported }

// DupRaw duplicates a descriptor on Linux.
func DupRaw(syscall.RawConn, string) (*os.File, error) { return nil, ErrNotSupported }

// DupFD duplicates a descriptor on Linux.
func DupFD(int, string) (*os.File, error) { return nil, ErrNotSupported }

func checkType(syscall.RawConn) error { return ErrNotSupported }

// Send sends a packet on Linux.
func (c *Conn) Send([]byte, int) error { return ErrNotSupported }

// SendFrom sends a packet on Linux.
func (c *Conn) SendFrom([]byte, syscall.RawConn) error { return ErrNotSupported }

// ShutWrite works on Linux.
func (c *Conn) ShutWrite() error { return ErrNotSupported }

// WaitWritable waits on Linux.
func (c *Conn) WaitWritable() error { return ErrNotSupported }

// WaitReadable waits on Linux.
func (c *Conn) WaitReadable() error { return ErrNotSupported }

// Receive receives a packet on Linux.
func (c *Conn) Receive([]byte) (n, fd int, err error) { return 0, -1, ErrNotSupported }

// Next is 0.
func (c *Conn) Next() int { return 0 }

// TryReceive receives a packet on Linux.
func (c *Conn) TryReceive([]byte) (n, fd int, err error) { return 0, -1, ErrNotSupported }

// CloseFD closes a descriptor that Receive returned.
func CloseFD(int) {}

// Pending is false.
func (c *Conn) Pending() bool { return false }
