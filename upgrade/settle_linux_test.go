package upgrade

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gapless/internal/testwait"
)

// rudeServer behaves as uvicorn does: it accepts eagerly, and when it is told to stop it closes at once what it has
// accepted but not read.
type rudeServer struct {
	listener net.Listener
	mu       sync.Mutex
	unread   map[net.Conn]bool
	stopped  bool // nothing is read any more
	done     sync.WaitGroup
}

func serveRudely(listener net.Listener) *rudeServer {
	s := &rudeServer{listener: listener, unread: make(map[net.Conn]bool)}
	s.done.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.unread[c] = true
			if s.stopped {
				_ = c.Close()
			}
			s.mu.Unlock()
			s.done.Go(func() { s.serve(c) })
		}
	})
	return s
}

// serve reads and notes that it has as one step, as a server with one thread does: stop never finds it in between.
func (s *rudeServer) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 64)
	n := 0
	if err := raw.Read(func(fd uintptr) (done bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.stopped {
			return true
		}
		if n, err = unix.Read(int(fd), buf); n > 0 {
			delete(s.unread, c)
		}
		return !errors.Is(err, unix.EAGAIN)
	}); err != nil || n <= 0 {
		return
	}
	_, _ = io.WriteString(c, "ok")
}

func (s *rudeServer) stop() {
	_ = s.listener.Close()
	s.mu.Lock()
	s.stopped = true
	rest := slices.Collect(maps.Keys(s.unread))
	s.mu.Unlock()
	for _, c := range rest { // Close waits for whoever wants the lock
		_ = c.Close()
	}
	s.done.Wait()
}

// load opens connections at a steady rate until stop is closed; each says nothing for a while, then asks once. It
// returns how many were answered, and the errors of the others.
func load(addr Address, every, silent time.Duration, stop <-chan struct{}) (ok int64, lost []error) {
	var answered atomic.Int64
	var mu sync.Mutex
	var clients sync.WaitGroup
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			clients.Wait()
			return answered.Load(), lost
		case <-tick.C:
		}
		clients.Go(func() {
			if err := askLate(addr, silent); err != nil {
				mu.Lock()
				lost = append(lost, err)
				mu.Unlock()
				return
			}
			answered.Add(1)
		})
	}
}

func askLate(addr Address, silent time.Duration) error {
	d := net.Dialer{Timeout: 10 * time.Second}
	c, err := d.DialContext(context.Background(), addr.Network, addr.Addr)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	<-time.After(silent)
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	answer, err := io.ReadAll(c)
	if err == nil && string(answer) != "ok" {
		err = fmt.Errorf("answer %q", answer)
	}
	return err
}

// swaps runs a number of swaps of two rude workers under load and returns what the load saw. wait is what happens
// between the switch and the stop.
func swaps(t *testing.T, mode Mode, rounds int, silent time.Duration, wait func(*Inventory, *Lane)) (ok int64, lost []error) {
	t.Helper()
	inv := claim(t, "127.0.0.1:0", mode)
	var old []*rudeServer
	var oldNames []string
	start := func() {
		lanes := take(t, inv, 2)
		activate := make(map[string]int)
		var servers []*rudeServer
		for _, l := range lanes {
			servers = append(servers, serveRudely(listenOnLane(t, l)))
			activate[l.Name()] = 1
		}
		if err := inv.Switch(activate, oldNames); err != nil {
			t.Fatal(err)
		}
		var drains sync.WaitGroup
		for i, name := range oldNames {
			drains.Go(func() { wait(inv, inv.Lane(name)); old[i].stop() })
		}
		drains.Wait()
		for _, name := range oldNames {
			if err := inv.Release(name); err != nil {
				t.Error(err)
			}
		}
		old, oldNames = servers, nil
		for _, l := range lanes {
			oldNames = append(oldNames, l.Name())
		}
	}
	start()
	stop := make(chan struct{})
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		ok, lost = load(inv.Addresses()[0], 2*time.Millisecond, silent, stop)
	}()
	for range rounds {
		start()
	}
	close(stop)
	<-finished
	for _, s := range old {
		s.stop()
	}
	return ok, lost
}

func TestSettle_LosesNothingToServersThatCloseUnread(t *testing.T) {
	for _, tc := range []struct {
		mode   Mode
		silent time.Duration
		rounds int
	}{
		{ModeSteered, 0, 40},
		{ModeSteered, 30 * time.Millisecond, 20},
		{ModeSteered, 200 * time.Millisecond, 12},
		{ModeShared, 200 * time.Millisecond, 6},
	} {
		t.Run(fmt.Sprintf("%s/%s", tc.mode, tc.silent), func(t *testing.T) {
			ok, lost := swaps(t, tc.mode, tc.rounds*loadFactor(t), tc.silent, func(inv *Inventory, l *Lane) {
				left, err := inv.Settle(context.Background(), l, os.Getpid(), 10*time.Second)
				if left != 0 || err != nil {
					open, _ := dump(unix.AF_INET, netip.MustParseAddrPort(inv.Addresses()[0].Addr).Port(), stateSynRecv|stateEstablished|stateCloseWait)
					t.Errorf("%s: %d left, %v, of %+v", l.Name(), left, err, open)
				}
			})
			if len(lost) > 0 || ok == 0 {
				t.Fatalf("%d answered, %d lost, the first: %v", ok, len(lost), lost[:min(1, len(lost))])
			}
			t.Logf("%d answered, 0 lost", ok)
		})
	}
}

// TestSettle_IsNeeded shows that the load can tell: a fixed quiet period of 100 ms loses clients that are silent longer.
func TestSettle_IsNeeded(t *testing.T) {
	ok, lost := swaps(t, ModeSteered, 5, 200*time.Millisecond, func(*Inventory, *Lane) { <-time.After(100 * time.Millisecond) })
	if len(lost) == 0 {
		t.Fatalf("%d answered and none lost: the load proves nothing", ok)
	}
	t.Logf("%d answered, %d lost", ok, len(lost))
}

func TestSettle_CeilingCountsSilentClients(t *testing.T) {
	inv := claim(t, "127.0.0.1:0", ModeSteered)
	lanes := take(t, inv, 2)
	for _, l := range lanes {
		s := serveRudely(listenOnLane(t, l))
		t.Cleanup(s.stop)
	}
	if err := inv.Switch(map[string]int{"web#0": 1}, nil); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		dial(t, inv.Addresses()[0])
	}
	if err := inv.Switch(map[string]int{"web#1": 1}, []string{"web#0"}); err != nil {
		t.Fatal(err)
	}
	left, err := inv.Settle(t.Context(), lanes[0], os.Getpid(), 50*time.Millisecond)
	if left != 3 || err != nil {
		t.Fatalf("%d left, %v; want 3", left, err)
	}
}

// TestSettle_FollowsHalfOpenConnections keeps a handshake open by TCP_DEFER_ACCEPT, which ends it with the first data.
func TestSettle_FollowsHalfOpenConnections(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		t.Run(addr, func(t *testing.T) {
			inv := claim(t, addr, ModeSteered)
			lanes := take(t, inv, 2)
			err := withFd(lanes[0].File(), func(fd int) error {
				return syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_DEFER_ACCEPT, 30)
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := inv.Switch(map[string]int{"web#0": 1}, nil); err != nil {
				t.Fatal(err)
			}
			client := dial(t, inv.Addresses()[0])
			if err := inv.Switch(map[string]int{"web#1": 1}, []string{"web#0"}); err != nil {
				t.Fatal(err)
			}
			left, err := inv.Settle(t.Context(), lanes[0], os.Getpid(), 20*time.Millisecond)
			if left != 1 || err != nil {
				t.Fatalf("half-open: %d left, %v; want 1", left, err)
			}
			worker := serveRudely(listenOnLane(t, lanes[0]))
			t.Cleanup(worker.stop)
			settled := make(chan error, 1)
			go func() {
				left, err := inv.Settle(context.Background(), lanes[0], os.Getpid(), 10*time.Second)
				if left != 0 && err == nil {
					err = fmt.Errorf("%d left", left)
				}
				settled <- err
			}()
			if _, err := io.WriteString(client, "hello"); err != nil {
				t.Fatal(err)
			}
			if answer, err := io.ReadAll(client); string(answer) != "ok" || err != nil {
				t.Fatalf("answer %q, %v", answer, err)
			}
			if err := <-settled; err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestSettle_HeedsOnlyItsWorker has two workers of other processes: the silent client of one must not hold up the other,
// whose connections are in a child process of it.
func TestSettle_HeedsOnlyItsWorker(t *testing.T) {
	inv := claim(t, "127.0.0.1:0", ModeSteered)
	lanes := take(t, inv, 3)
	silent, child := startWorker(t, lanes[0], "serve"), startWorker(t, lanes[1], "fork")
	ask := func(lane int) net.Conn {
		if err := inv.Switch(map[string]int{lanes[lane].Name(): 1}, active(inv)); err != nil && !errors.Is(err, ErrLastLane) {
			t.Fatal(err)
		}
		return dial(t, inv.Addresses()[0])
	}
	ask(0)
	c := ask(1)
	for _, l := range lanes[:2] {
		testwait.Until(t, "its connection is accepted", func() bool { r, err := read(l.File()); return err == nil && r.queue == 0 })
	}
	if err := inv.Switch(map[string]int{lanes[2].Name(): 1}, active(inv)); err != nil {
		t.Fatal(err)
	}
	if left, err := inv.Settle(t.Context(), lanes[1], child, 100*time.Millisecond); left != 1 || err != nil {
		t.Fatalf("the child's unread connection: %d left, %v; want 1", left, err)
	}
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if left, err := inv.Settle(t.Context(), lanes[1], child, 10*time.Second); left != 0 || err != nil {
		t.Fatalf("after it was read: %d left, %v", left, err)
	}
	if left, err := inv.Settle(t.Context(), lanes[0], silent, 50*time.Millisecond); left != 1 || err != nil {
		t.Fatalf("the other's: %d left, %v; want 1", left, err)
	}
}

// active lists the active lanes.
func active(inv *Inventory) (names []string) {
	for _, l := range inv.Lanes("web") {
		if l.State() == LaneActive {
			names = append(names, l.Name())
		}
	}
	return names
}

const workerRole = "GAPLESS_TEST_LANE_WORKER"

// startWorker runs this test binary as a worker of a lane until the test ends.
func startWorker(t *testing.T, l *Lane, role string) (pid int) {
	t.Helper()
	dup, err := dupFile(l.File())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dup.Close() }()
	stdin, stop, err := os.Pipe() // its end of file ends the worker and its children
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestLaneWorkerProcess$")
	cmd.Env = append(os.Environ(), workerRole+"="+role)
	cmd.Stdin, cmd.Stderr, cmd.ExtraFiles = stdin, os.Stderr, []*os.File{dup}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = stdin.Close()
	t.Cleanup(func() { _ = stop.Close(); _ = cmd.Wait() })
	return cmd.Process.Pid
}

// TestLaneWorkerProcess is no test but the body of a worker process, and does nothing in the test process itself.
func TestLaneWorkerProcess(t *testing.T) {
	role := os.Getenv(workerRole)
	if role == "" {
		return
	}
	listening := os.NewFile(3, "lane")
	if role == "fork" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestLaneWorkerProcess$")
		cmd.Env = append(os.Environ(), workerRole+"=serve")
		cmd.Stdin, cmd.Stderr, cmd.ExtraFiles = os.Stdin, os.Stderr, []*os.File{listening}
		if err := cmd.Run(); err != nil {
			t.Error(err)
		}
		return
	}
	if err := syscall.SetNonblock(3, true); err != nil {
		t.Fatal(err)
	}
	listener, err := net.FileListener(listening)
	if err != nil {
		t.Fatal(err)
	}
	s := serveRudely(listener)
	_, _ = io.Copy(io.Discard, os.Stdin)
	s.stop()
}

// loadFactor multiplies the counts of load tests: 1 for every day, 10 in a soak run.
func loadFactor(*testing.T) int {
	if os.Getenv("GAPLESS_SOAK") == "1" {
		return 10
	}
	return 1
}

func FuzzParseDump(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 200))
	f.Fuzz(func(t *testing.T, packet []byte) {
		if found, _, err := parseDump(packet, nil); err != nil && found != nil {
			t.Fatal("connections and an error")
		}
	})
}
