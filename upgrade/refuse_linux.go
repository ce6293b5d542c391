package upgrade

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// listens tells whether a socket of any kind is one that listens.
func listens(file *os.File) (yes bool) {
	err := withFd(file, func(fd int) error {
		v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		yes = v != 0
		return err
	})
	return err == nil && yes
}

// admitAgain undoes Refuse for one lane.
func admitAgain(file *os.File) error {
	return withFd(file, func(fd int) error {
		err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
		if errors.Is(err, unix.ENOENT) { // there is none
			return nil
		}
		return os.NewSyscallError("setsockopt", err)
	})
}

// Refuse has the kernel drop attempts to connect at all addresses, silently, while handshakes under way still end and
// what is queued can still be accepted: the first act of a full stop. A client that is dropped tries again after a
// second, and is refused once Shutdown has followed. Connections inherit the filter, which means nothing to them. Where
// the filter cannot be attached, and for unix sockets, connections keep coming until Shutdown.
func (inv *Inventory) Refuse() error {
	code, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 13, Size: 1}, // the flags in the TCP header, where a listening socket's filter begins to count
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x12},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0x02, SkipTrue: 1}, // SYN without ACK
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: 0xffffffff},
	})
	if err != nil {
		return fmt.Errorf("assemble the filter: %w", err)
	}
	filter := make([]unix.SockFilter, len(code))
	for i, c := range code {
		filter[i] = unix.SockFilter{Code: c.Op, Jt: c.Jt, Jf: c.Jf, K: c.K}
	}
	inv.mu.Lock()
	defer inv.mu.Unlock()
	var errs []error
	for _, g := range inv.groups {
		if g.address.Network != NetworkTCP {
			continue // unix sockets have no handshake, and those of a service manager are its own to close
		}
		for _, l := range g.lanes {
			err := withFd(l.file, func(fd int) error {
				return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
			})
			if err != nil {
				errs = append(errs, fmt.Errorf("refuse at %s: %w", l.name, err))
			}
		}
	}
	return errors.Join(errs...)
}
