//go:build !linux

package pidfd

import (
	"context"
	"os"
	"syscall"
)

// Process is one process behind a pidfd; on this system there is none.
type Process struct{}

// Start fails with ErrNotSupported.
func Start(string, []string, *syscall.ProcAttr) (*Process, error) { return nil, ErrNotSupported }

// Open fails with ErrNotSupported.
func Open(int) (*Process, error) { return nil, ErrNotSupported }

// Adopt fails with ErrNotSupported.
func Adopt(*os.File, int) (*Process, error) { return nil, ErrNotSupported }

// PID is 0.
func (*Process) PID() int { return 0 }

// Done is nil.
func (*Process) Done() <-chan struct{} { return nil }

// File fails with ErrNotSupported.
func (*Process) File() (*os.File, error) { return nil, ErrNotSupported }

// Signal fails with ErrNotSupported.
func (*Process) Signal(syscall.Signal) error { return ErrNotSupported }

// SignalGroup fails with ErrNotSupported.
func (*Process) SignalGroup(syscall.Signal) error { return ErrNotSupported }

// Status is unknown.
func (*Process) Status() Status { return Status{} }

// Wait fails with ErrNotSupported.
func (*Process) Wait(context.Context) (Status, error) { return Status{}, ErrNotSupported }

// Close does nothing.
func (*Process) Close() error { return nil }
