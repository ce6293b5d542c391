package lifecycle

import (
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gapless/internal/packet"
	"gapless/upgrade"
	"gapless/workerpool"

	"go.uber.org/zap/zaptest"
)

// fileStore stands for tableflip: it keeps duplicates by name.
type fileStore struct {
	mu    sync.Mutex
	files map[string]*os.File
}

func (s *fileStore) File(name string) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files[name] == nil {
		return nil, nil
	}
	return packet.Dup(s.files[name], name)
}

func (s *fileStore) AddFile(name string, f *os.File) error {
	dup, err := packet.Dup(f, name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.files[name]; old != nil {
		old.Close()
	}
	s.files[name] = dup
	return nil
}

// newTestGate returns the gate of generation 1, in charge of one address with a port of the kernel's choice.
func newTestGate(t *testing.T, mode upgrade.Mode) *gate {
	t.Helper()
	store := &fileStore{files: make(map[string]*os.File)}
	inv := upgrade.NewInventory(store, upgrade.InventoryOptions{})
	t.Cleanup(func() {
		if err := inv.Close(); err != nil {
			t.Error(err)
		}
		for _, f := range store.files {
			f.Close()
		}
	})
	a, err := upgrade.ParseAddress("http=127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	named, err := upgrade.NameAddresses([]upgrade.Address{a})
	if err != nil {
		t.Fatal(err)
	}
	if err := inv.Claim(named[0], mode); err != nil {
		t.Fatal(err)
	}
	return newGate(1, inv, []string{named[0].Name}, 100*time.Millisecond, zaptest.NewLogger(t))
}

// worker is one that the gate gives sockets.
func startWorker(t *testing.T, g *gate, slot int) workerpool.Info {
	t.Helper()
	sockets, err := g.Sockets(slot)
	if err != nil {
		t.Fatal(err)
	}
	i := workerpool.Info{ID: workerpool.ID{Slot: slot, Generation: g.generation, PID: os.Getpid()}}
	for _, s := range sockets {
		i.Lanes, i.Inodes = append(i.Lanes, s.Lane), append(i.Inodes, s.Inode)
	}
	return i
}

func readyWorker(t *testing.T, g *gate, slot int) workerpool.Info {
	t.Helper()
	i := startWorker(t, g, slot)
	if err := g.Admit(i); err != nil {
		t.Fatal(err)
	}
	return i
}

// active returns the lanes that take new connections, sorted.
func active(inv *upgrade.Inventory) (names []string) {
	for _, l := range inv.Lanes("http") {
		if l.State() == upgrade.LaneActive {
			names = append(names, l.Name())
		}
	}
	slices.Sort(names)
	return names
}

func wantActive(t *testing.T, inv *upgrade.Inventory, when string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := active(inv); !slices.Equal(got, want) {
		t.Errorf("%s the active lanes are %q, want %q", when, got, want)
	}
}

func wantFree(t *testing.T, inv *upgrade.Inventory, lane string) {
	t.Helper()
	if s := inv.Lane(lane).State(); s != upgrade.LaneFree {
		t.Errorf("lane %s is %v, want free", lane, s)
	}
}

func TestGate_AdmitsEachWorkerOnALaneOfItsOwn(t *testing.T) {
	g := newTestGate(t, upgrade.ModeSteered)
	a, b := startWorker(t, g, 0), startWorker(t, g, 1)
	if a.Lanes[0] == b.Lanes[0] || a.Inodes[0] == b.Inodes[0] {
		t.Fatalf("both have lane %q", a.Lanes[0])
	}
	if err := g.Admit(a); err != nil {
		t.Fatal(err)
	}
	wantActive(t, g.inv, "with one ready", a.Lanes[0])
	if err := g.Admit(b); err != nil {
		t.Fatal(err)
	}
	wantActive(t, g.inv, "with both ready", a.Lanes[0], b.Lanes[0])
}

func TestGate_TheLaneOfACrashedWorkerIsFreedAndReused(t *testing.T) {
	g := newTestGate(t, upgrade.ModeSteered)
	a, b := readyWorker(t, g, 0), readyWorker(t, g, 1)
	g.Release(a, workerpool.Ready)
	wantActive(t, g.inv, "after the crash", b.Lanes[0])
	wantFree(t, g.inv, a.Lanes[0])
	again := readyWorker(t, g, 0)
	if again.Lanes[0] != a.Lanes[0] {
		t.Errorf("the next worker got lane %s, want the free %s", again.Lanes[0], a.Lanes[0])
	}
	wantActive(t, g.inv, "after the restart", a.Lanes[0], b.Lanes[0])
}

// With nobody else there clients wait for the next worker, and that is where they wait.
func TestGate_TheLastLaneStaysForTheNextWorker(t *testing.T) {
	g := newTestGate(t, upgrade.ModeSteered)
	a := readyWorker(t, g, 0)
	g.Release(a, workerpool.Ready)
	wantActive(t, g.inv, "after the crash", a.Lanes[0])
	if again := startWorker(t, g, 0); again.Lanes[0] != a.Lanes[0] {
		t.Errorf("the next worker got lane %s; clients wait on %s", again.Lanes[0], a.Lanes[0])
	}
}

// When all have died one lane stays, and the next worker to start gets it. If another is ready sooner, new clients do not
// wait for that one.
func TestGate_NobodyWaitsForAWorkerThatStartsWhileAnotherIsReady(t *testing.T) {
	g := newTestGate(t, upgrade.ModeSteered)
	a, b := readyWorker(t, g, 0), readyWorker(t, g, 1)
	g.Release(a, workerpool.Ready)
	g.Release(b, workerpool.Ready)
	wantActive(t, g.inv, "after both crashes", b.Lanes[0])
	slow, quick := startWorker(t, g, 0), startWorker(t, g, 1)
	if slow.Lanes[0] != b.Lanes[0] {
		t.Fatalf("the next worker got lane %s; clients wait on %s", slow.Lanes[0], b.Lanes[0])
	}
	if err := g.Admit(quick); err != nil {
		t.Fatal(err)
	}
	wantActive(t, g.inv, "with one ready", quick.Lanes[0])
	if err := g.Admit(slow); err != nil {
		t.Fatal(err)
	}
	wantActive(t, g.inv, "with both ready", slow.Lanes[0], quick.Lanes[0])
}

// The share of a staged generation is exact from the first own worker that is ready again.
func TestGate_AStagedShareIsExactWhileTheOwnWorkersStartAgain(t *testing.T) {
	g := newTestGate(t, upgrade.ModeSteered)
	a, b := readyWorker(t, g, 0), readyWorker(t, g, 1)
	names, _, err := g.lend("http", 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.beginStage(names); err != nil {
		t.Fatal(err)
	}
	g.Release(a, workerpool.Ready)
	g.Release(b, workerpool.Ready)
	if err := g.shift(10); err != nil {
		t.Fatal(err)
	}
	wantActive(t, g.inv, "with nobody else ready", names...)
	slow, quick := startWorker(t, g, 0), startWorker(t, g, 1)
	for _, next := range []workerpool.Info{quick, slow} {
		if err := g.Admit(next); err != nil {
			t.Fatal(err)
		}
		sum, staged := 0, 0
		for _, l := range g.inv.Lanes("http") {
			sum += l.Weight()
			if slices.Contains(names, l.Name()) {
				staged += l.Weight()
			}
		}
		if staged*10 != sum {
			t.Errorf("with worker %d ready the staged lanes have %d of %d, want 10 %%", next.Slot, staged, sum)
		}
	}
}

func TestGate_WithdrawTakesALaneOutButNotTheLast(t *testing.T) {
	g := newTestGate(t, upgrade.ModeSteered)
	a, b := readyWorker(t, g, 0), readyWorker(t, g, 1)
	g.Withdraw(a)
	wantActive(t, g.inv, "after the first", b.Lanes[0])
	g.Withdraw(b)
	wantActive(t, g.inv, "after the last", b.Lanes[0])
	g.Release(a, workerpool.Draining)
	wantFree(t, g.inv, a.Lanes[0])
}

func TestGate_SharedWorkersLeaveTheLaneToEachOther(t *testing.T) {
	g := newTestGate(t, upgrade.ModeShared)
	a, b := readyWorker(t, g, 0), readyWorker(t, g, 1)
	if a.Lanes[0] != b.Lanes[0] {
		t.Fatalf("they have lanes %s and %s", a.Lanes[0], b.Lanes[0])
	}
	g.Withdraw(a)
	g.Release(a, workerpool.Draining)
	wantActive(t, g.inv, "with one left", b.Lanes[0])
	g.Release(b, workerpool.Ready)
	if again := readyWorker(t, g, 1); again.Lanes[0] != b.Lanes[0] {
		t.Errorf("a restarted worker got lane %s, not %s", again.Lanes[0], b.Lanes[0])
	}
}

func TestGate_LanesThatAreLentAreNobodyElsesAndComeBack(t *testing.T) {
	g := newTestGate(t, upgrade.ModeSteered)
	a := readyWorker(t, g, 0)
	names, lanes, err := g.lend("http", 2)
	if err != nil || len(names) != 2 || len(lanes) != 2 {
		t.Fatal(names, lanes, err)
	}
	b := readyWorker(t, g, 1) // sweeps
	if slices.Contains(names, b.Lanes[0]) || slices.Contains(names, a.Lanes[0]) {
		t.Errorf("lane %s was lent and given to a worker", b.Lanes[0])
	}
	for _, l := range lanes {
		if l.State() == upgrade.LaneFree {
			t.Errorf("lane %s was swept while it was lent", l.Name())
		}
	}
	g.returnLanes(names)
	for _, name := range names {
		wantFree(t, g.inv, name)
	}
	wantActive(t, g.inv, "after the upgrade failed", a.Lanes[0], b.Lanes[0])
}

// nextGate is the gate of generation 2, before its commit, with n lanes from the master in charge.
func nextGate(t *testing.T, g *gate, n int) (*gate, []string) {
	t.Helper()
	names, lanes, err := g.lend("http", n)
	if err != nil {
		t.Fatal(err)
	}
	next := newGate(2, nil, g.names, g.ceiling, g.log)
	var sockets []workerpool.Socket
	for _, l := range lanes {
		sockets = append(sockets, socketOf(l))
	}
	next.grant("http", sockets, false)
	return next, names
}

func TestGate_BeforeTheCommitItOnlyKnowsWhatItWasGranted(t *testing.T) {
	g := newTestGate(t, upgrade.ModeSteered)
	old := readyWorker(t, g, 0)
	next, names := nextGate(t, g, 2)
	a, b := readyWorker(t, next, 0), readyWorker(t, next, 1)
	if got := []string{a.Lanes[0], b.Lanes[0]}; !slices.Equal(got, names) {
		t.Errorf("the workers got %q of %q", got, names)
	}
	wantActive(t, g.inv, "before the commit", old.Lanes[0])
	if _, err := next.Sockets(2); err == nil || !strings.Contains(err.Error(), "granted too few lanes of http") {
		t.Errorf("a third worker: %v", err)
	}
	next.Withdraw(a) // does nothing yet
	next.Release(a, workerpool.Starting)
	if again := startWorker(t, next, 0); again.Lanes[0] != a.Lanes[0] || again.Inodes[0] != a.Inodes[0] {
		t.Errorf("the replacement got %+v, want lane %s", again, a.Lanes[0])
	}
}

func TestGate_TakesChargeByOneSwitch(t *testing.T) {
	g := newTestGate(t, upgrade.ModeSteered)
	first, second := readyWorker(t, g, 0), readyWorker(t, g, 1)
	next, names := nextGate(t, g, 1)
	a := readyWorker(t, next, 0)
	if err := next.takeCharge(g.inv, []workerpool.Info{first, second}); err != nil {
		t.Fatal(err)
	}
	wantActive(t, g.inv, "after the commit", names...)
	for _, old := range []workerpool.Info{first, second} {
		if s := g.inv.Lane(old.Lanes[0]).State(); s == upgrade.LaneFree {
			t.Errorf("lane %s is free while its worker drains", old.Lanes[0])
		}
		next.Withdraw(old)
		next.Release(old, workerpool.Draining)
		wantFree(t, g.inv, old.Lanes[0])
	}
	wantActive(t, g.inv, "after the drain", a.Lanes[0])
	// From now on it takes lanes by itself.
	if b := readyWorker(t, next, 1); b.Lanes[0] == a.Lanes[0] {
		t.Errorf("two workers on lane %s", b.Lanes[0])
	}
}

// Lanes of workers that died in between are nobody's: they leave the program, and are free.
func TestGate_TakingChargeSweepsTheLanesOfTheDead(t *testing.T) {
	g := newTestGate(t, upgrade.ModeSteered)
	dead := readyWorker(t, g, 0)
	g.Release(dead, workerpool.Ready) // the last one: its lane stays in the program
	next, names := nextGate(t, g, 1)
	if names[0] == dead.Lanes[0] {
		t.Fatalf("the active lane %s was lent", names[0])
	}
	readyWorker(t, next, 0)
	if err := next.takeCharge(g.inv, nil); err != nil {
		t.Fatal(err)
	}
	wantActive(t, g.inv, "after the commit", names...)
	wantFree(t, g.inv, dead.Lanes[0])
}

// While a staged generation has a share, the lane that all workers of the one in charge had is freed when they have died: those
// that replace them need one that may become active.
func TestGate_SharedWorkersThatDieBesideAStagedGenerationAreReplaced(t *testing.T) {
	g := newTestGate(t, upgrade.ModeShared)
	old := readyWorker(t, g, 0)
	lent, _, err := g.lend("http", 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.beginStage(lent); err != nil {
		t.Fatal(err)
	}
	if err := g.shift(10); err != nil {
		t.Fatal(err)
	}
	g.Release(old, workerpool.Ready)
	wantActive(t, g.inv, "when all have died", lent...)
	next := readyWorker(t, g, 0)
	wantActive(t, g.inv, "when one is back", append(slices.Clone(next.Lanes), lent...)...)
	if another := readyWorker(t, g, 1); !slices.Equal(another.Lanes, next.Lanes) {
		t.Errorf("lanes %v and %v, want the same", another.Lanes, next.Lanes)
	}
}
