package gapless

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gapless/internal/handoff"
	"gapless/internal/testwait"
)

// childVariable says that this process may change its limits: it runs a single
// test and is nobody's but that test's.
const childVariable = "GAPLESS_TEST_CHILD"

// alone runs the calling test in a process of its own, without any privilege:
// root may have as many descriptors in flight as it likes. It returns true in
// that process.
func alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv(childVariable) != "" {
		return true
	}
	// By this name another user finds the binary, whatever directory it is in.
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.count=1", "-test.timeout=2m", "-test.v=true")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), childVariable+"=1", "TMPDIR=/tmp", "GORACE=atexit_sleep_ms=0")
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
	return false
}

// limitFiles sets the limit on descriptors of this process.
func limitFiles(t *testing.T, n uint64) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	limit.Cur = n
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
}

// askEach asks on all connections at once. It returns a channel with the
// generations that answer, and what waits for the last of them.
func askEach(t *testing.T, as []asker) (generations chan string, all *sync.WaitGroup) {
	t.Helper()
	generations, all = make(chan string, len(as)), new(sync.WaitGroup)
	for i, a := range as {
		all.Go(func() {
			want := fmt.Sprint(i)
			a.send(t, post("/", fmt.Sprintf("Content-Length: %d\r\n", len(want)), want))
			g, got := a.answer(t)
			if got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			generations <- g
		})
	}
	return generations, all
}

// askAll returns how many connections each generation has answered.
func askAll(t *testing.T, as []asker) map[string]int {
	t.Helper()
	generations, all := askEach(t, as)
	all.Wait()
	by := make(map[string]int)
	for range as {
		by[<-generations]++
	}
	return by
}

func askersOf(t *testing.T, f *fleet, n int) []asker {
	t.Helper()
	var as []asker
	for _, c := range dialN(t, f.addr(), n) {
		as = append(as, newAsker(c))
	}
	if by := askAll(t, as); by["1"] != n {
		t.Fatalf("answered by %v", by)
	}
	return as
}

// The kernel allows a user as many descriptors in flight as a process may have
// open. What is beyond that stays, is served, and goes when there is room.
func TestHandoff_TooManyDescriptorsInFlight(t *testing.T) {
	if !alone(t) {
		return
	}
	const n, few = 200, 60
	limitFiles(t, 4*n)
	f := newFleet(t, echoing)
	as := askersOf(t, f, n)
	old := f.cur
	f.cur = f.start()
	recv, send, err := handoff.NewPair()
	if err != nil {
		t.Fatal(err)
	}
	stalled, err := handoff.NewReceiver(recv)
	if err != nil {
		t.Fatal(err)
	}
	defer stalled.Close()
	sender, err := handoff.NewSender(send)
	if err != nil {
		t.Fatal(err)
	}
	next := f.cur.sender(t)
	defer next.Close()
	s := old.p.servers[0]

	limitFiles(t, few) // from now on nothing can be opened either
	old.p.orderDrain(order{from: time.Now(), queue: sender})
	testwait.Until(t, "no more descriptors are let in flight", func() bool { return s.full.Load() })
	// Those in the queue are not answered yet.
	answers, all := askEach(t, as)
	for i := range n - 2*few {
		select {
		case g := <-answers:
			if g != "1" {
				t.Errorf("answered by generation %s, which has got no connection yet", g)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("only %d of %d connections were kept, with %d descriptors allowed in flight", i, n, few)
		}
	}
	if s.broken.Load() {
		t.Error("the queue is taken for broken")
	}
	limitFiles(t, 4*n)
	testwait.Until(t, "the old worker is done", func() bool {
		if _, err := handoff.Move(next, stalled); err != nil && !errors.Is(err, handoff.ErrFull) && !errors.Is(err, syscall.ETOOMANYREFS) {
			t.Fatal(err)
		}
		return len(old.done) > 0
	})
	await(t, old.done)
	if _, err := handoff.Move(next, stalled); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	if by := askAll(t, as); by["2"] != n {
		t.Errorf("in the end, answered by %v", by)
	}
}

// A worker that can open nothing takes nothing from the queue, where the
// kernel would close what it cannot install. Others may take it meanwhile.
func TestHandoff_ShortOfDescriptors(t *testing.T) {
	if !alone(t) {
		return
	}
	const n = 25 // fewer than are allowed in flight below
	limitFiles(t, 8*n)
	f := newFleet(t, echoing)
	as := askersOf(t, f, n)
	old := f.cur
	f.cur = f.start()
	sender := f.cur.sender(t)

	// The limit is one on the numbers of descriptors, and the old worker's
	// become free when its connections leave. Below this one there are fewer
	// than what it takes to be sure.
	limitFiles(t, spareFDs/2)
	// What the look before allowed may still come; see headroom.
	<-time.After(2 * lookAge)
	old.p.orderDrain(order{from: time.Now(), queue: sender})
	await(t, old.done)
	if got := f.cur.p.servers[0].count(); got > 0 {
		t.Errorf("%d connections were taken with hardly a descriptor to spare", got)
	}
	limitFiles(t, 8*n)
	if by := askAll(t, as); by["2"] != n {
		t.Errorf("answered by %v", by)
	}
}

// A connection that has moved and becomes active while there is no descriptor waits for one, as it would have had one where
// it was accepted.
func TestIdleSet_ShortOfDescriptors(t *testing.T) {
	if !alone(t) {
		return
	}
	const n = 25
	limitFiles(t, 8*n)
	f := newFleet(t, echoing)
	as := askersOf(t, f, n)
	f.upgrade()
	testwait.Until(t, "all connections have moved", func() bool { return f.cur.connections() == n })

	limitFiles(t, 8) // nothing can be opened: those below are in use
	answers, all := askEach(t, as)
	select {
	case g := <-answers:
		t.Errorf("answered by generation %s, with what descriptor?", g)
	case <-time.After(5 * shortPause):
	}
	limitFiles(t, 8*n)
	all.Wait()
	if t.Failed() {
		return
	}
	if by := askAll(t, as); by["2"] != n {
		t.Errorf("answered by %v", by)
	}
}
