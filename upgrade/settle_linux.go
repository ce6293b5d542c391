package upgrade

import (
	"net/netip"
	"os"
	"strconv"
	"strings"

	"gapless/internal/procfs"

	"golang.org/x/sys/unix"
)

// laneKernel asks the real kernel about one lane and its worker.
type laneKernel struct {
	file     *os.File
	pid      int
	at       netip.AddrPort
	families []uint8
}

func newSettleKernel(lane *Lane, pid int) (settleKernel, error) {
	text, err := localAddress(lane.file)
	if err != nil {
		return nil, err
	}
	at, err := netip.ParseAddrPort(text)
	if err != nil {
		return nil, err
	}
	k := &laneKernel{file: lane.file, pid: pid, at: at, families: []uint8{family(at.Addr())}}
	if at.Addr().Is6() && at.Addr().IsUnspecified() {
		// Open IPv4 connections of a dual-stack socket count as IPv6. What a half-open one counts as is the kernel's
		// affair; one that is found twice does no harm.
		k.families = append(k.families, unix.AF_INET)
	}
	return k, nil
}

func (k *laneKernel) connections() ([]connection, error) {
	var all []connection
	for _, f := range k.families {
		found, err := dump(f, k.at.Port(), stateSynRecv|stateEstablished|stateCloseWait)
		if err != nil {
			return nil, err
		}
		for _, c := range found {
			if ip := k.at.Addr(); ip.IsUnspecified() || c.local.Addr() == ip.WithZone("") {
				all = append(all, c)
			}
		}
	}
	return all, nil
}

func (k *laneKernel) queue() (int, error) {
	r, err := read(k.file)
	return r.queue, err
}

func (k *laneKernel) held() (inodes map[uint32]bool, known bool) {
	inodes = make(map[uint32]bool)
	if k.pid == 0 {
		return inodes, true // the caller does not mind what has been accepted
	}
	if !socketsOf(k.pid, inodes) {
		return nil, false
	}
	descendants, err := procfs.Descendants(k.pid)
	if err != nil {
		return inodes, true // the worker is gone, and so is what it held
	}
	for _, d := range descendants {
		if !socketsOf(d.PID, inodes) {
			return nil, false
		}
	}
	return inodes, true
}

// socketsOf adds the inodes of the sockets that a process has open, and says whether it was allowed to look. A process
// that is gone holds none.
func socketsOf(pid int, inodes map[uint32]bool) (allowed bool) {
	dir, err := os.Open("/proc/" + strconv.Itoa(pid) + "/fd")
	if err != nil {
		return !os.IsPermission(err)
	}
	defer func() { _ = dir.Close() }()
	names, err := dir.Readdirnames(-1)
	if os.IsPermission(err) {
		return false
	}
	for _, name := range names {
		link, err := os.Readlink(dir.Name() + "/" + name)
		if os.IsPermission(err) {
			return false
		}
		if number, ok := strings.CutPrefix(link, "socket:["); ok {
			if inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 32); err == nil {
				inodes[uint32(inode)] = true
			}
		}
	}
	return true
}
