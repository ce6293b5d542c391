package upgrade

import (
	"os"
	"strconv"
)

// Count returns how many open connections of an address each of the processes holds. Those of a process that may not be
// looked into count as none, as do connections of unix sockets.
func (inv *Inventory) Count(address string, pids []int) (map[int]int, error) {
	lanes := inv.Lanes(address)
	counts := make(map[int]int, len(pids))
	if len(lanes) == 0 || lanes[0].Address().Network == NetworkUnix {
		return counts, nil
	}
	kernel, err := newSettleKernel(lanes[0], 0)
	if err != nil {
		return counts, err
	}
	connections, err := kernel.connections()
	if err != nil {
		return counts, err
	}
	open := make(map[uint32]bool, len(connections))
	for _, c := range connections {
		if c.inode != 0 {
			open[c.inode] = true
		}
	}
	if len(open) == 0 {
		return counts, nil
	}
	for _, pid := range pids {
		if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err != nil {
			continue
		}
		held := make(map[uint32]bool)
		socketsOf(pid, held)
		for inode := range held {
			if open[inode] {
				counts[pid]++
			}
		}
	}
	return counts, nil
}
