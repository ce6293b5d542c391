package upgrade

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"gapless/internal/packet"
)

// newMasterPID is what the new masters of these tests say that they are.
const newMasterPID = 4711

// fakeHandover plays both processes of an upgrade: Upgrade starts child in a goroutine.
type fakeHandover struct {
	*fakeFiles
	child func(c *newMaster)
	fails error // of Upgrade, before there is a child

	killed     chan struct{} // the new master got KILL
	kill       func()
	parentGone chan struct{} // the master in charge has exited
	childGone  chan struct{}
}

func newFakeHandover(t *testing.T, child func(c *newMaster)) *fakeHandover {
	h := &fakeHandover{fakeFiles: newFakeFiles(t), child: child, killed: make(chan struct{}),
		parentGone: make(chan struct{}), childGone: make(chan struct{})}
	h.kill = sync.OnceFunc(func() { close(h.killed) })
	return h
}

// Upgrade returns nil when the child is ready, and an error when it has ended before.
func (h *fakeHandover) Upgrade() error {
	if h.fails != nil {
		close(h.childGone)
		return h.fails
	}
	c := &newMaster{h: h, files: &fakeFiles{files: make(map[string]*os.File)}, ready: make(chan struct{})}
	h.mu.Lock()
	for name, f := range h.files {
		if err := c.files.AddFile(name, f); err != nil {
			h.mu.Unlock()
			close(h.childGone)
			return err
		}
	}
	h.mu.Unlock()
	go func() {
		defer close(h.childGone)
		h.child(c)
		for _, f := range c.files.files {
			f.Close()
		}
	}()
	select {
	case <-c.ready:
		return nil
	case <-h.childGone:
		select {
		case <-c.ready:
			return nil
		default:
			return errExit
		}
	}
}

func (h *fakeHandover) Ready() error                        { return errors.New("the first master has nobody to tell") }
func (h *fakeHandover) WaitForParent(context.Context) error { return nil }
func (h *fakeHandover) HasParent() bool                     { return false }

// newMaster is the Handover of the new master.
type newMaster struct {
	h     *fakeHandover
	files *fakeFiles
	ready chan struct{}
}

func (c *newMaster) File(name string) (*os.File, error)        { return c.files.File(name) }
func (c *newMaster) AddFile(name string, f *os.File) error     { return c.files.AddFile(name, f) }
func (c *newMaster) Upgrade() error                            { return errors.New("not in charge") }
func (c *newMaster) HasParent() bool                           { return true }
func (c *newMaster) Ready() error                              { close(c.ready); return nil }
func (c *newMaster) WaitForParent(context.Context) (err error) { <-c.h.parentGone; return nil }

// fakeOwner is the master in charge.
type fakeOwner struct {
	lanes  func(address string, count int) ([]string, []*os.File, error)
	freeze func() ([]Parcel, error)

	mu       sync.Mutex
	progress []Progress
	frozen   int
	thawed   int
}

func (o *fakeOwner) Lanes(address string, count int) ([]string, []*os.File, error) {
	return o.lanes(address, count)
}

func (o *fakeOwner) Progress(p Progress) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.progress = append(o.progress, p)
}

func (o *fakeOwner) Freeze() ([]Parcel, error) {
	o.mu.Lock()
	o.frozen++
	o.mu.Unlock()
	if o.freeze != nil {
		return o.freeze()
	}
	return nil, nil
}

func (o *fakeOwner) Thaw() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.thawed++
}

// counts returns how often it was frozen and thawed.
func (o *fakeOwner) counts() (frozen, thawed int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.frozen, o.thawed
}

// phases are those that the owner was told of.
func (o *fakeOwner) phases() []Phase {
	o.mu.Lock()
	defer o.mu.Unlock()
	var phases []Phase
	for _, p := range o.progress {
		phases = append(phases, p.Phase)
	}
	return slices.Compact(phases)
}

// transaction is an attempt with all that it stands on.
type transaction struct {
	*Attempt
	owner *fakeOwner
	h     *fakeHandover
	ended []int // what End was called with
}

// newTransaction returns an attempt to bring generation 7, whose new master is child.
func newTransaction(t *testing.T, child func(c *newMaster)) *transaction {
	t.Helper()
	h := newFakeHandover(t, child)
	tr := &transaction{owner: &fakeOwner{}, h: h}
	tr.Attempt = &Attempt{Handover: h, Owner: tr.owner, Offer: Offer{Generation: 7, PID: os.Getpid(), Workers: 3}}
	tr.End = func(pid int) {
		tr.ended = append(tr.ended, pid)
		h.kill()
		<-h.childGone
	}
	return tr
}

// run performs the attempt, and lets the master in charge exit if it succeeds. It fails the test when descriptors leak.
func (tr *transaction) run(t *testing.T, ctx context.Context) error {
	t.Helper()
	err := tr.Run(ctx)
	if err == nil {
		close(tr.h.parentGone)
	}
	select {
	case <-tr.h.childGone:
	case <-time.After(20 * time.Second):
		t.Fatal("the new master does not end")
	}
	return err
}

// noLeaks runs f and fails the test if it leaves descriptors open. Those of the Handover's table are not f's.
func noLeaks(t *testing.T, f func()) {
	t.Helper()
	a, b, err := packet.Pair() // the runtime opens descriptors of its own for the first one
	if err != nil {
		t.Fatal(err)
	}
	packet.CloseAll([]*os.File{a, b})
	before := descriptors(t)
	f()
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors are left open", after-before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// closeTable closes what the Handover holds.
func (f *fakeFiles) closeTable() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, file := range f.files {
		file.Close()
		delete(f.files, name)
	}
}

// hello joins as a well-behaved new master does.
func hello(t *testing.T, c *newMaster) *Predecessor {
	p, err := Join(c)
	if err != nil {
		t.Errorf("join: %v", err)
		return nil
	}
	p.Progress(Progress{Phase: PhasePrepare, PID: newMasterPID, Limit: time.Minute})
	return p
}

// abortError checks that err is an *AbortError and returns it.
func abortError(t *testing.T, err error) *AbortError {
	t.Helper()
	var ae *AbortError
	if !errors.As(err, &ae) || !errors.Is(err, ErrAborted) {
		t.Fatalf("got %v, want an *AbortError", err)
	}
	if ae.Generation != 7 {
		t.Errorf("it names generation %d", ae.Generation)
	}
	return ae
}
