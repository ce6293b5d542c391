//go:build !linux

package upgrade

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/bpf"
)

// Elsewhere than on Linux gapless only builds: no address can be claimed.

var errNoListen = fmt.Errorf("gapless run: %w: use Linux", ErrNotSupported)

const tcpListening = 10

type reading struct {
	state          uint8
	queue, backlog int
}

func (inv *Inventory) open(*group) ([]*os.File, error) { return nil, errNoListen }
func openSibling(Address, *os.File) (*os.File, error)  { return nil, errNoListen }
func socketInode(*os.File) (uint64, error)             { return 0, errNoListen }
func prepareInherited(*os.File) error                  { return errNoListen }
func closeOnExec(*os.File) error                       { return errNoListen }
func boundAddress(addr Address, _ *os.File) Address    { return addr }
func fileInode(string) uint64                          { return 0 }
func attach(*os.File, []bpf.RawInstruction) error      { return errNoListen }
func listenAgain(*os.File) error                       { return errNoListen }
func countListeners(*os.File) (int, error)             { return 0, errNoListen }
func listens(*os.File) bool                            { return false }
func admitAgain(*os.File) error                        { return errNoListen }
func waitProgram()                                     {}
func read(*os.File) (reading, error)                   { return reading{}, errNoListen }

// connection is one socket as the kernel lists it.
type connection struct {
	local, remote netip.AddrPort
	state         uint8
	inode, unread uint32
	received      uint64
}

const stateSynRecv = 1 << 3

func newSettleKernel(*Lane, int) (settleKernel, error) { return nil, errNoListen }

// Route needs Linux.
type Route struct {
	Network, Addr string
	Source        string
	Class         int
}

// Dialer returns one that dials like any other.
func (Route) Dialer(timeout time.Duration) *net.Dialer { return &net.Dialer{Timeout: timeout} }

// PreviewRoute needs Linux.
func (inv *Inventory) PreviewRoute(string) (Route, error) { return Route{}, errNoListen }

// KnockDialer needs Linux.
func (inv *Inventory) KnockDialer(string, time.Duration) (*net.Dialer, string, string, error) {
	return nil, "", "", errNoListen
}

// StopPolling needs Linux.
func StopPolling(...*os.File) error { return errNoListen }

func (inv *Inventory) stopPollingLanes() error { return errNoListen }
