package upgrade

import (
	"context"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"gapless/internal/testwait"
)

// watch runs the watcher until the test ends.
func watch(t *testing.T, inv *Inventory, opts WatchOptions) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := inv.Watch(ctx, opts); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); done.Wait() })
}

func TestWatch_EndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := NewInventory(nil, InventoryOptions{}).Watch(ctx, WatchOptions{}); err != nil {
			t.Fatal(err)
		}
	})
}

func TestWatch_TakesOutAHungWorkerAndPutsItBack(t *testing.T) {
	inv := claim(t, "127.0.0.1:0", ModeSteered)
	lanes := take(t, inv, 3)
	echoName(t, lanes[0])
	echoName(t, lanes[2])
	if err := inv.Switch(map[string]int{"web#0": 1, "web#1": 1, "web#2": 1}, nil); err != nil {
		t.Fatal(err)
	}
	addr := inv.Addresses()[0]
	isOut := func() bool { return inv.Readings()[1].Out }
	stalled := make(chan bool, 100)
	watch(t, inv, WatchOptions{Interval: 10 * time.Millisecond, Stalled: func(_ *Lane, out bool) { stalled <- out }})
	for inv.Readings()[1].Queue == 0 {
		dial(t, addr)
	}
	testwait.Until(t, "the hung lane is out", isOut)
	waiting := inv.Readings()[1].Queue
	for range 50 {
		if got := who(t, addr); got == "web#1" {
			t.Fatal("a hung worker answered")
		}
	}
	if got := inv.Readings()[1].Queue; got != waiting {
		t.Fatalf("queue grew from %d to %d while out", waiting, got)
	}
	echoName(t, lanes[1])
	testwait.Until(t, "it is back", func() bool { return !isOut() })
	testwait.Until(t, "it answers", func() bool { return who(t, addr) == "web#1" })
	if !<-stalled || <-stalled {
		t.Error("out and back were not told in this order")
	}
}

func TestWatch_RepairsShutdown(t *testing.T) {
	for _, tc := range []struct {
		name  string
		lanes int
		shut  string
		order string
	}{
		{"the first", 4, "web#0", "web#3 web#1 web#2 web#0"},
		{"in the middle", 4, "web#1", "web#0 web#3 web#2 web#1"},
		{"the last", 4, "web#3", "web#0 web#1 web#2 web#3"},
		{"the only one", 1, "web#0", "web#0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inv := claim(t, "127.0.0.1:0", ModeSteered)
			activate := make(map[string]int)
			for _, l := range take(t, inv, tc.lanes) {
				activate[l.Name()] = 1
			}
			if err := inv.Switch(activate, nil); err != nil {
				t.Fatal(err)
			}
			watch(t, inv, WatchOptions{Interval: 5 * time.Millisecond})
			lane := inv.Lane(tc.shut)
			if err := shutdownLane(lane); err != nil {
				t.Fatal(err)
			}
			testwait.Until(t, "it listens again", func() bool { r, err := read(lane.File()); return err == nil && r.state == tcpListening })
			order := func() string {
				var names []string
				for _, l := range inv.Lanes("web") {
					names = append(names, l.Name())
				}
				return strings.Join(names, " ")
			}
			testwait.Until(t, "the order is as the kernel's", func() bool { return order() == tc.order })
			for _, l := range inv.Lanes("web") {
				echoName(t, l)
			}
			// Each lane alone must get what is meant for it: so the order is the kernel's.
			for _, l := range inv.Lanes("web") {
				withdraw := active(inv)
				if err := inv.Switch(map[string]int{l.Name(): 1}, without(withdraw, l.Name())); err != nil {
					t.Fatal(err)
				}
				for range 5 {
					if got := who(t, inv.Addresses()[0]); got != l.Name() {
						t.Fatalf("meant for %s, answered by %s", l.Name(), got)
					}
				}
			}
		})
	}
}

func without(names []string, name string) (rest []string) {
	for _, n := range names {
		if n != name {
			rest = append(rest, n)
		}
	}
	return rest
}

func TestWatch_ReportsStraysOfFreeLanes(t *testing.T) {
	inv := claim(t, "127.0.0.1:0", ModeSteered)
	lanes := take(t, inv, 2)
	if err := inv.Switch(map[string]int{"web#0": 1}, nil); err != nil {
		t.Fatal(err)
	}
	var clients []net.Conn
	for range 3 {
		clients = append(clients, dial(t, inv.Addresses()[0]))
	}
	if err := inv.Switch(map[string]int{"web#1": 1}, []string{"web#0"}); err != nil {
		t.Fatal(err)
	}
	if err := inv.Release("web#0"); err != nil {
		t.Fatal(err)
	}
	strays := make(chan int, 1)
	watch(t, inv, WatchOptions{Interval: 5 * time.Millisecond, Stray: func(l *Lane, queue int) {
		if l != lanes[0] {
			t.Errorf("stray at %s", l.name)
		}
		select {
		case strays <- queue:
		default:
		}
	}})
	if got := <-strays; got != len(clients) {
		t.Fatalf("%d strays, want %d", got, len(clients))
	}
}

// TestRestore_ALaneThatIsOutComesBack: the next master's watcher knows nothing of the lane but what the state says.
func TestRestore_ALaneThatIsOutComesBack(t *testing.T) {
	files := newFakeFiles(t)
	old := newTestInventory(t, files, InventoryOptions{})
	if err := old.Claim(parse(t, "127.0.0.1:0"), ModeSteered); err != nil {
		t.Fatal(err)
	}
	take(t, old, 2)
	if err := old.Switch(map[string]int{"web#0": 1, "web#1": 1}, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { _ = old.Watch(ctx, WatchOptions{}) })
	t.Cleanup(func() { cancel(); done.Wait() })
	for old.Readings()[0].Queue == 0 || old.Readings()[1].Queue == 0 {
		dial(t, old.Addresses()[0])
	}
	testwait.Until(t, "one of two is out", func() bool { r := old.Readings(); return r[0].Out != r[1].Out })
	cancel()
	done.Wait()
	inv, err := Restore(files, old.State(), nil, InventoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = inv.Close() })
	watch(t, inv, WatchOptions{})
	for _, l := range inv.Lanes("web") {
		echoName(t, l)
	}
	testwait.Until(t, "none is out", func() bool { r := inv.Readings(); return !r[0].Out && !r[1].Out })
	for _, name := range []string{"web#0", "web#1"} {
		testwait.Until(t, name+" answers", func() bool { return who(t, inv.Addresses()[0]) == name })
	}
}

// shutdownLane does what a careless worker does to the socket that it inherited.
func shutdownLane(l *Lane) error {
	return withFd(l.File(), func(fd int) error { return syscall.Shutdown(fd, syscall.SHUT_RDWR) })
}

// TestTake_GivesAReusedLaneItsBacklogBack: a worker's own listen(2) holds for whoever inherits the lane.
func TestTake_GivesAReusedLaneItsBacklogBack(t *testing.T) {
	inv := claim(t, "127.0.0.1:0", ModeSteered)
	lane := take(t, inv, 1)[0]
	before := inv.Readings()[0].Backlog
	if err := withFd(lane.File(), func(fd int) error { return syscall.Listen(fd, 5) }); err != nil {
		t.Fatal(err)
	}
	if got := inv.Readings()[0].Backlog; got != 5 {
		t.Fatalf("backlog %d after the worker's listen, want 5", got)
	}
	if err := inv.Release(lane.Name()); err != nil {
		t.Fatal(err)
	}
	take(t, inv, 1)
	if got := inv.Readings()[0].Backlog; got != before {
		t.Fatalf("backlog %d, want %d again", got, before)
	}
}

func BenchmarkReadings(b *testing.B) {
	inv := NewInventory(noFiles{}, InventoryOptions{})
	b.Cleanup(func() { _ = inv.Close() })
	if err := inv.Claim(Address{"web", NetworkTCP, "127.0.0.1:0"}, ModeSteered); err != nil {
		b.Fatal(err)
	}
	if _, err := inv.Take("web", 64); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		inv.Readings()
	}
}
