// Package notify receives the messages of the sd_notify protocol: from workers that say READY=1, and from masters
// that tell the parent who is in charge. (Sending them is github.com/coreos/go-systemd's work.)
//
// Every message comes with the sender's credentials from the kernel, because the sockets are abstract ones, which
// any process of the network namespace can write to: who may say what is the caller's decision, by PID.
package notify

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// maxDatagram bounds a message in bytes; longer ones are cut, as systemd does.
const maxDatagram = 4096

// ErrForeign marks a datagram without credentials or with a form that is none of sd_notify's.
var ErrForeign = errors.New("not an sd_notify message")

// Message is one datagram: its KEY=VALUE lines and the process that sent it.
type Message struct {
	PID    int
	UID    int
	Fields map[string]string
	// FDs are the descriptors that came along: bare numbers, close-on-exec, the receiver's to close. Only ReceiveFDs
	// passes them on. They are no files because an os.File of a listening socket would wake this process for each of its
	// connections.
	FDs []int
}

// Ready tells whether the message says READY=1.
func (m Message) Ready() bool { return m.Fields["READY"] == "1" }

// Socket is the receiving end. Address is what NOTIFY_SOCKET must hold for the senders.
type Socket struct {
	uc      *net.UnixConn
	address string
}

// Address returns the value for NOTIFY_SOCKET.
func (s *Socket) Address() string { return s.address }

// SetReadDeadline ends a Receive at t with os.ErrDeadlineExceeded and leaves unread messages for the next reader.
func (s *Socket) SetReadDeadline(t time.Time) error { return s.uc.SetReadDeadline(t) }

// Close closes this process's copy.
func (s *Socket) Close() error { return s.uc.Close() }

// Parse reads the lines of a message. Lines without '=' are passed over, and of a key that comes twice the last
// counts, as in systemd.
func Parse(data []byte) map[string]string {
	fields := make(map[string]string)
	for line := range bytes.Lines(data) {
		k, v, ok := bytes.Cut(bytes.TrimRight(line, "\n"), []byte{'='})
		if ok && len(k) > 0 {
			fields[string(k)] = string(v)
		}
	}
	return fields
}

// FromFile makes a socket of an inherited descriptor. It takes f over.
func FromFile(f *os.File, address string) (*Socket, error) {
	defer f.Close()
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("inherited notify socket %s: %w", address, err)
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("inherited notify socket %s is a %T", address, c)
	}
	return &Socket{uc, address}, nil
}
