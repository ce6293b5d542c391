package upgrade

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"gapless/internal/testwait"

	"golang.org/x/sys/unix"
)

// waits says whether the watcher has the kernel tell it of arrivals at all lanes.
func waits(t *testing.T, inv *Inventory) bool {
	t.Helper()
	table, err := readFdTable(nil)
	if err != nil {
		t.Fatal(err)
	}
	armed := make(map[string]bool) // by inode
	for _, epoll := range table.epolls {
		info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", epoll))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(info)) {
			fields := strings.Fields(line)
			if len(fields) < 4 || fields[0] != "tfd:" {
				continue
			}
			events, err := strconv.ParseUint(fields[3], 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range fields {
				if inode, ok := strings.CutPrefix(f, "ino:"); ok && events&unix.EPOLLIN != 0 {
					armed[inode] = true
				}
			}
		}
	}
	for _, l := range inv.Lanes("web") {
		if !armed[strconv.FormatUint(l.Inode(), 16)] {
			return false
		}
	}
	return true
}

func TestWatch_WaitsWhereNothingComesAndMissesNothing(t *testing.T) {
	const interval = 2 * time.Millisecond
	calm := func(t *testing.T, inv *Inventory) {
		t.Helper()
		testwait.Until(t, "the watcher waits to be told", func() bool { return waits(t, inv) })
	}
	start := func(t *testing.T, opts WatchOptions) *Inventory {
		inv := claim(t, "127.0.0.1:0", ModeSteered)
		lanes := take(t, inv, 2)
		echoName(t, lanes[0])
		if err := inv.Switch(map[string]int{"web#0": 1, "web#1": 1}, nil); err != nil {
			t.Fatal(err)
		}
		opts.Interval = interval
		watch(t, inv, opts)
		calm(t, inv)
		return inv
	}
	hang := func(t *testing.T, inv *Inventory) {
		t.Helper()
		for inv.Readings()[1].Queue == 0 {
			dial(t, inv.Addresses()[0])
		}
		testwait.Until(t, "the hung lane is out", func() bool { return inv.Readings()[1].Out })
	}
	t.Run("hung worker", func(t *testing.T) {
		inv := start(t, WatchOptions{})
		hang(t, inv)
		echoName(t, inv.Lanes("web")[1])
		testwait.Until(t, "it is back", func() bool { return !inv.Readings()[1].Out })
		calm(t, inv)
	})
	t.Run("again and again", func(t *testing.T) {
		inv := start(t, WatchOptions{})
		for range 5 {
			for range 20 {
				dial(t, inv.Addresses()[0])
				if inv.Readings()[1].Queue > 0 {
					break
				}
			}
			acceptAll(t, inv.Lanes("web")[1])
			calm(t, inv)
		}
		hang(t, inv)
	})
	t.Run("new lane", func(t *testing.T) {
		inv := start(t, WatchOptions{})
		echoName(t, take(t, inv, 1)[0])
		if err := inv.Switch(map[string]int{"web#2": 1}, nil); err != nil {
			t.Fatal(err)
		}
		calm(t, inv)
		hang(t, inv)
	})
	t.Run("shut down", func(t *testing.T) {
		inv := start(t, WatchOptions{})
		if err := shutdownLane(inv.Lanes("web")[0]); err != nil {
			t.Fatal(err)
		}
		testwait.Until(t, "all listen", func() bool {
			for _, l := range inv.Lanes("web") {
				if r, err := read(l.File()); err != nil || r.state != tcpListening {
					return false
				}
			}
			return true
		})
		calm(t, inv)
	})
	t.Run("somebody stops polling", func(t *testing.T) {
		inv := start(t, WatchOptions{})
		inv.mu.Lock()
		err := inv.stopPollingLanes()
		inv.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		calm(t, inv)
		// The first lane's worker is of this process and so polls no more either: any of the two may hang.
		for inv.Readings()[0].Queue+inv.Readings()[1].Queue == 0 {
			dial(t, inv.Addresses()[0])
		}
		testwait.Until(t, "a hung lane is out", func() bool { r := inv.Readings(); return r[0].Out || r[1].Out })
	})
	t.Run("stray", func(t *testing.T) {
		strays := make(chan string, 1)
		inv := start(t, WatchOptions{Stray: func(l *Lane, _ int) {
			select {
			case strays <- l.name:
			default:
			}
		}})
		for inv.Readings()[1].Queue == 0 {
			dial(t, inv.Addresses()[0])
		}
		if err := inv.Switch(nil, []string{"web#1"}); err != nil {
			t.Fatal(err)
		}
		if err := inv.Release("web#1"); err != nil {
			t.Fatal(err)
		}
		if got := <-strays; got != "web#1" {
			t.Fatalf("a stray at %s", got)
		}
	})
}

// acceptAll takes all connections from a lane's queue.
func acceptAll(t *testing.T, l *Lane) {
	t.Helper()
	for {
		var fd int
		err := withFd(l.File(), func(lane int) (err error) {
			fd, _, err = unix.Accept4(lane, unix.SOCK_CLOEXEC)
			return err
		})
		if err != nil {
			return
		}
		_ = unix.Close(fd)
	}
}
