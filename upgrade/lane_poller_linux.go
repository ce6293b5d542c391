package upgrade

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// An os.File of a non-blocking socket joins the runtime's epoll set, and a process that holds a lane so is woken for
// each connection that arrives for a worker: 12 µs of CPU each time, in every manager process. Nobody here waits for
// connections, so the lanes are taken out of the set again. The runtime does not mind: it ignores what epoll_ctl says
// when such a file is closed.

// StopPolling takes files of listening sockets out of this process's epoll sets. Deadlines do not work on them any
// more, and nobody must wait on them by the runtime's means.
func StopPolling(files ...*os.File) error {
	table, err := readFdTable(nil)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		errs = append(errs, withFd(f, func(fd int) error { return table.remove(fd) }))
	}
	return errors.Join(errs...)
}

// stopPollingLanes does so with every descriptor that this process has of the lanes, those that Files keeps for itself
// included. Nobody may close a descriptor of a lane meanwhile: its number could be another file's by then.
func (inv *Inventory) stopPollingLanes() error {
	lanes := make(map[uint64]bool)
	for _, g := range inv.groups {
		for _, l := range g.lanes {
			lanes[l.inode] = true
		}
	}
	table, err := readFdTable(lanes)
	if err != nil {
		return err
	}
	var errs []error
	for _, fd := range table.sockets {
		errs = append(errs, table.remove(fd))
	}
	inv.stir() // its epoll set is one of those
	return errors.Join(errs...)
}

// fdTable is what this process has open, as far as it matters here.
type fdTable struct {
	epolls  []int
	sockets []int // those with the inodes that were asked for
}

func readFdTable(inodes map[uint64]bool) (table fdTable, err error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return table, fmt.Errorf("list open descriptors: %w", err)
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		link, err := os.Readlink(dir + "/" + e.Name())
		if err != nil {
			continue // closed since, or the listing's own
		}
		if link == "anon_inode:[eventpoll]" {
			table.epolls = append(table.epolls, fd)
		} else if number, ok := strings.CutPrefix(link, "socket:["); ok {
			inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64)
			if err == nil && inodes[inode] {
				table.sockets = append(table.sockets, fd)
			}
		}
	}
	return table, nil
}

// remove takes a descriptor out of all epoll sets. That it is in none is no error.
func (t fdTable) remove(fd int) error {
	for _, epoll := range t.epolls {
		err := unix.EpollCtl(epoll, unix.EPOLL_CTL_DEL, fd, nil)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return os.NewSyscallError("epoll_ctl", err)
		}
	}
	return nil
}
