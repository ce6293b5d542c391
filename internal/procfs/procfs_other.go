//go:build !linux

package procfs

import (
	"context"
	"io"
	"syscall"
)

// Waiting fails with ErrNotSupported.
func Waiting(int, map[uint64]bool) (Evidence, error) { return Evidence{}, ErrNotSupported }

// ProbeMain fails with ErrNotSupported.
func ProbeMain(io.Reader, io.Writer) error { return ErrNotSupported }

// Prober asks helpers; on this system it has nothing to ask for.
type Prober struct{}

// NewProber returns a Prober that supports nothing.
func NewProber(...string) *Prober { return &Prober{} }

// Waiting fails with ErrNotSupported.
func (*Prober) Waiting(context.Context, int, map[uint64]bool) (Evidence, error) {
	return Evidence{}, ErrNotSupported
}

// Rest does nothing.
func (*Prober) Rest() error { return nil }

// Close does nothing.
func (*Prober) Close() error { return nil }

// Owner knows nothing.
func Owner(int) (uid, gid int) { return -1, -1 }

// ReadStat fails with ErrNotSupported.
func ReadStat(int) (Stat, error) { return Stat{}, ErrNotSupported }

// Processes fails with ErrNotSupported.
func Processes() ([]Stat, error) { return nil, ErrNotSupported }

// Children fails with ErrNotSupported.
func Children(int) ([]int, error) { return nil, ErrNotSupported }

// Descendants fails with ErrNotSupported.
func Descendants(int) ([]Stat, error) { return nil, ErrNotSupported }

// SessionMembers fails with ErrNotSupported.
func SessionMembers(int) ([]Stat, error) { return nil, ErrNotSupported }

// Environ fails with ErrNotSupported.
func Environ(int) ([]string, error) { return nil, ErrNotSupported }

// EnvironHas fails with ErrNotSupported.
func EnvironHas(int, string) (bool, error) { return false, ErrNotSupported }

// Cmdline fails with ErrNotSupported.
func Cmdline(int) ([]string, error) { return nil, ErrNotSupported }

// Exe fails with ErrNotSupported.
func Exe(int) (string, error) { return "", ErrNotSupported }

// OpenFiles fails with ErrNotSupported.
func OpenFiles(int) (int, error) { return 0, ErrNotSupported }

// ReadMemory fails with ErrNotSupported.
func ReadMemory(int) (Memory, error) { return Memory{}, ErrNotSupported }

// SocketInode fails with ErrNotSupported.
func SocketInode(syscall.Conn) (uint64, error) { return 0, ErrNotSupported }

// SignalSession fails with ErrNotSupported.
func SignalSession(int, syscall.Signal) (int, error) { return 0, ErrNotSupported }

// SignalSessionExcept fails with ErrNotSupported.
func SignalSessionExcept(int, syscall.Signal, func(Stat) bool) (int, error) {
	return 0, ErrNotSupported
}

// SignalDescendants fails with ErrNotSupported.
func SignalDescendants(int, syscall.Signal) (int, error) { return 0, ErrNotSupported }

// Elsewhere knows nothing.
func Elsewhere(int, map[uint64]bool) []string { return nil }

// Took knows nothing.
func Took(int, map[uint64]bool) bool { return false }

// SignalMarked fails with ErrNotSupported.
func SignalMarked(int, string, syscall.Signal) (int, error) { return 0, ErrNotSupported }

// PortOwner knows nobody.
func PortOwner(string, string) string { return "" }

// PortHolders knows nobody.
func PortHolders(string, string) []Stat { return nil }
