//go:build !linux

package notify

import (
	"errors"
	"os"
	"time"
)

// errLinux: senders are checked by credentials that only Linux passes along.
var errLinux = errors.New("notify sockets need Linux")

// Listen fails: see errLinux.
func Listen() (*Socket, error) { return nil, errLinux }

// Receive fails: see errLinux.
func (s *Socket) Receive() (Message, error) { return Message{}, errLinux }

// File fails: see errLinux.
func (s *Socket) File() (*os.File, error) { return nil, errLinux }

// ReceiveFDs fails: see errLinux.
func (s *Socket) ReceiveFDs() (Message, error) { return Message{}, errLinux }

// CloseFDs does nothing: there are none.
func CloseFDs([]int) {}

// Send fails: see errLinux.
func Send(string, string, ...*os.File) error { return errLinux }

// Barrier fails: see errLinux.
func Barrier(string, time.Duration) error { return errLinux }

// SendFDs fails: see errLinux.
func SendFDs(string, string, ...int) error { return errLinux }
