package upgrade

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// everyday and full are the numbers of program replacements under load: the full one where GAPLESS_SOAK is set.
const (
	everyday = 1000
	full     = 10000
)

// TestSwitch_LosesNothingUnderLoad replaces the program over and over, through changing sockets of the group, while
// clients open connections as fast as they can. Whatever lane gets one answers at once, so each must be answered.
func TestSwitch_LosesNothingUnderLoad(t *testing.T) {
	replacements := everyday
	if loadFactor(t) > 1 {
		replacements = full
	}
	for _, addr := range []string{"127.0.0.1:0", ":0"} {
		t.Run(addr, func(t *testing.T) {
			inv := claim(t, addr, ModeSteered)
			lanes := take(t, inv, 8)
			perLane := make(map[string]*atomic.Int64)
			for _, l := range lanes {
				perLane[l.Name()] = new(atomic.Int64)
				serveFast(t, l)
			}
			if err := inv.Switch(map[string]int{"web#0": 1}, nil); err != nil {
				t.Fatal(err)
			}
			stop := make(chan struct{})
			var clients sync.WaitGroup
			var answered, lost atomic.Int64
			var first atomic.Pointer[error]
			for range 4 {
				clients.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						name, err := ask(inv.Addresses()[0])
						if err != nil || perLane[name] == nil {
							lost.Add(1)
							first.CompareAndSwap(nil, &err)
							continue
						}
						answered.Add(1)
						perLane[name].Add(1)
					}
				})
			}
			began := time.Now()
			for i := range replacements {
				activate := map[string]int{lanes[i%8].Name(): 1 + i%5, lanes[(i+3)%8].Name(): 1}
				var withdraw []string
				for _, name := range active(inv) {
					if activate[name] == 0 {
						withdraw = append(withdraw, name)
					}
				}
				if err := inv.Switch(activate, withdraw); err != nil {
					t.Fatal(err)
				}
				// So that connections fall between any two replacements, each waits for a few.
				for target := answered.Load() + 2; answered.Load() < target && lost.Load() == 0; {
					<-time.After(50 * time.Microsecond)
				}
			}
			took := time.Since(began)
			close(stop)
			clients.Wait()
			if n := lost.Load(); n > 0 {
				t.Fatalf("%d of %d connections lost, the first: %v", n, n+answered.Load(), *first.Load())
			}
			for name, n := range perLane {
				if n.Load() == 0 {
					t.Errorf("%s got nothing", name)
				}
			}
			t.Logf("%d replacements in %s, %d connections answered, 0 lost", replacements, took.Round(time.Millisecond), answered.Load())
		})
	}
}

// serveFast is echoName without a reader's patience: several acceptors, so that a queue never overflows.
func serveFast(t *testing.T, l *Lane) {
	t.Helper()
	listener := listenOnLane(t, l)
	var done sync.WaitGroup
	for range 2 {
		done.Go(func() {
			for {
				c, err := listener.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, l.Name())
				_ = c.Close()
			}
		})
	}
	t.Cleanup(func() { _ = listener.Close(); done.Wait() })
}

// TestSwitch_NothingGoesToAWithdrawnLane: after Switch has returned, no new connection reaches what it withdrew.
func TestSwitch_NothingGoesToAWithdrawnLane(t *testing.T) {
	inv := claim(t, "127.0.0.1:0", ModeSteered)
	for _, l := range take(t, inv, 2) {
		echoName(t, l)
	}
	if err := inv.Switch(map[string]int{"web#0": 1}, nil); err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		next, prev := fmt.Sprintf("web#%d", (i+1)%2), fmt.Sprintf("web#%d", i%2)
		if err := inv.Switch(map[string]int{next: 1}, []string{prev}); err != nil {
			t.Fatal(err)
		}
		if got := who(t, inv.Addresses()[0]); got != next {
			t.Fatalf("round %d: answered by %s, want %s", i, got, next)
		}
	}
}

// TestTake_NewLanesGetNothingUnasked opens many siblings beside an active lane.
func TestTake_NewLanesGetNothingUnasked(t *testing.T) {
	inv := claim(t, "127.0.0.1:0", ModeSteered)
	first := take(t, inv, 1)[0]
	echoName(t, first)
	if err := inv.Switch(map[string]int{first.Name(): 1}, nil); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		take(t, inv, 4)
		if got := who(t, inv.Addresses()[0]); got != first.Name() {
			t.Fatalf("answered by %s", got)
		}
	}
	for _, r := range inv.Readings() {
		if r.Queue != 0 {
			t.Errorf("%s has %d in its queue", r.Name, r.Queue)
		}
	}
}

// TestLane_NeverBlocks: whoever inherits a lane must find it non-blocking.
func TestLane_NeverBlocks(t *testing.T) {
	inv := claim(t, "127.0.0.1:0", ModeSteered)
	for _, l := range take(t, inv, 2) {
		listener := listenOnLane(t, l)
		if err := listener.(*net.TCPListener).SetDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := listener.Accept(); err == nil {
			t.Error("accepted")
		}
	}
}

// TestLane_IsAsNewWhenItIsReused: a worker may have had the lane block, which is nothing to whoever gets it next.
func TestLane_IsAsNewWhenItIsReused(t *testing.T) {
	inv := claim(t, "127.0.0.1:0", ModeSteered)
	first := take(t, inv, 1)[0]
	if err := withFd(first.File(), func(fd int) error { return unix.SetNonblock(fd, false) }); err != nil {
		t.Fatal(err)
	}
	if err := inv.Release(first.Name()); err != nil {
		t.Fatal(err)
	}
	again := take(t, inv, 1)[0]
	err := withFd(again.File(), func(fd int) error {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if flags&unix.O_NONBLOCK == 0 {
			t.Error("it blocks")
		}
		return err
	})
	if err != nil || again != first {
		t.Fatalf("%s became %s: %v", first.Name(), again.Name(), err)
	}
}

// TestLanes_AreNotPolled: no descriptor of a lane is in this process's epoll set, neither the inventory's nor those that
// Files keeps, before an upgrade and after it.
func TestLanes_AreNotPolled(t *testing.T) {
	files := newFakeFiles(t)
	inv := newTestInventory(t, files, InventoryOptions{})
	if err := inv.Claim(parse(t, "127.0.0.1:0"), ModeSteered); err != nil {
		t.Fatal(err)
	}
	take(t, inv, 3)
	if polled := polledInodes(t, inv); len(polled) > 0 {
		t.Fatalf("polled: %v", polled)
	}
	next := newFakeFiles(t)
	received := make(map[string]*os.File)
	for i, l := range inv.Lanes("web") {
		dup, err := dupFile(l.File()) // joins the poller, as it is non-blocking by now
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			received[l.Name()] = dup
			continue
		}
		if err := next.AddFile(laneFile(l.Name()), dup); err != nil {
			t.Fatal(err)
		}
		if len(polledInodes(t, inv)) == 0 {
			t.Fatal("this test sees nothing")
		}
		_ = dup.Close()
	}
	restored, err := Restore(next, inv.State(), received, InventoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = restored.Close() })
	if polled := polledInodes(t, restored); len(polled) > 0 {
		t.Fatalf("polled after an upgrade: %v", polled)
	}
	f, err := dupFile(restored.Lane("web#0").File())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := StopPolling(f); err != nil || len(polledInodes(t, restored)) > 0 {
		t.Fatalf("still polled, %v", err)
	}
}

// polledInodes lists the inodes of lanes that are in an epoll set of this process.
func polledInodes(t *testing.T, inv *Inventory) (polled []uint64) {
	t.Helper()
	table, err := readFdTable(nil)
	if err != nil || len(table.epolls) == 0 {
		t.Fatalf("%d epoll sets, %v", len(table.epolls), err)
	}
	for _, epoll := range table.epolls {
		info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", epoll))
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range inv.Lanes("web") {
			if strings.Contains(string(info), fmt.Sprintf(" ino:%x ", l.Inode())) {
				polled = append(polled, l.Inode())
			}
		}
	}
	return polled
}

func BenchmarkSwitch(b *testing.B) {
	for _, n := range []int{4, 64, 1000} {
		b.Run(fmt.Sprintf("lanes=%d", n), func(b *testing.B) {
			inv := NewInventory(noFiles{}, InventoryOptions{})
			b.Cleanup(func() { _ = inv.Close() })
			if err := inv.Claim(Address{"web", NetworkTCP, "127.0.0.1:0"}, ModeSteered); err != nil {
				b.Fatal(err)
			}
			lanes, err := inv.Take("web", n)
			if err != nil {
				b.Fatal(err)
			}
			weights := make(map[string]int)
			for i, l := range lanes {
				weights[l.Name()] = 1 + i%3
			}
			for b.Loop() {
				if err := inv.Switch(weights, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
