package upgrade

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// fakeStage is a Stage whose Hold does what the test says, and that writes down what it is told.
type fakeStage struct {
	hold func(ctx context.Context, s *fakeStage) error

	mu      sync.Mutex
	calls   []string
	parcels []Parcel
	spared  bool
	holding chan struct{} // closed by Hold
	undone  chan struct{} // closed by the first Undo
	seats   chan Seats
}

func newFakeStage(hold func(ctx context.Context, s *fakeStage) error) *fakeStage {
	return &fakeStage{hold: hold, holding: make(chan struct{}), undone: make(chan struct{}), seats: make(chan Seats, 8)}
}

func (s *fakeStage) note(call string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, call)
}

func (s *fakeStage) called() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Compact(slices.Clone(s.calls))
}

func (s *fakeStage) Parcel(p Parcel) {
	s.note("parcel " + p.Kind)
	s.parcels = append(s.parcels, p)
}

func (s *fakeStage) Seats(seats Seats) { s.seats <- seats }

func (s *fakeStage) Hold(ctx context.Context) error {
	s.note("hold")
	close(s.holding)
	return s.hold(ctx, s)
}

func (s *fakeStage) Undo() {
	select {
	case <-s.undone:
	default:
		s.note("undo")
		close(s.undone)
	}
}

func (s *fakeStage) Spared() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spared
}

func (s *fakeStage) Left() { s.note("left") }

// close closes what has come.
func (s *fakeStage) close() {
	for _, p := range s.parcels {
		for _, f := range p.Files {
			f.Close()
		}
	}
}

// give spares the workers, as a stage does before it gives them a share.
func (s *fakeStage) give(a *Attempt) error {
	s.mu.Lock()
	s.spared = true
	s.mu.Unlock()
	return a.Spare()
}

// stagedMaster presents a file, and then waits for the commit. then gets what came of that, before the process ends.
func stagedMaster(t *testing.T, then func(c *newMaster, p *Predecessor, err error)) func(c *newMaster) {
	return func(c *newMaster) {
		p := hello(t, c)
		if p == nil {
			return
		}
		defer p.Close()
		if !p.Offer().Stage {
			t.Error("it was not told that it is to be staged")
		}
		if err := present(p); err != nil {
			t.Error(err)
		}
		err := p.Commit(t.Context(), func([]Parcel) error { return nil })
		if then != nil {
			then(c, p, err)
		}
	}
}

// present tells of one worker, with a file.
func present(p *Predecessor) error {
	f, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer f.Close()
	parcel, err := NewParcel("worker", 1, f)
	if err != nil {
		return err
	}
	return p.Has(parcel)
}

func TestAttempt_Stages(t *testing.T) {
	reason := errors.New("nobody liked it")
	for _, tc := range []struct {
		name   string
		hold   func(ctx context.Context, s *fakeStage, tr *transaction) error
		then   func(c *newMaster, p *Predecessor, err error)
		calls  []string
		reason string // of the abort; "": it is in charge
		tail   []string
		is     error
	}{
		{
			name:  "and commits",
			hold:  func(context.Context, *fakeStage, *transaction) error { return nil },
			calls: []string{"parcel worker", "hold"},
		},
		{
			name: "and commits what had a share",
			hold: func(_ context.Context, s *fakeStage, tr *transaction) error { return s.give(tr.Attempt) },
			then: func(_ *newMaster, p *Predecessor, err error) {
				if err != nil || !p.Spared() {
					t.Errorf("commit: %v, spared: %v", err, p.Spared())
				}
			},
			calls: []string{"parcel worker", "hold"},
		},
		{
			name: "and gives up",
			hold: func(context.Context, *fakeStage, *transaction) error {
				return &StageError{Reason: "worker 1 ended", Tail: []string{"its last line"}}
			},
			then: func(_ *newMaster, p *Predecessor, err error) {
				if err == nil || err.Error() != "worker 1 ended" || p.Spared() {
					t.Errorf("commit: %v, spared: %v", err, p.Spared())
				}
			},
			calls: []string{"parcel worker", "hold", "undo", "left"}, reason: "worker 1 ended", tail: []string{"its last line"},
		},
		{
			name: "and gives up what had a share, whose last state comes",
			hold: func(_ context.Context, s *fakeStage, tr *transaction) error {
				return errors.Join(s.give(tr.Attempt), reason)
			},
			then: func(_ *newMaster, p *Predecessor, err error) {
				if !p.Spared() {
					t.Error("its workers were not spared")
				}
				if err := present(p); err != nil {
					t.Error(err)
				}
			},
			calls: []string{"parcel worker", "hold", "undo", "parcel worker", "left"}, reason: reason.Error(), is: reason,
		},
		{
			name:  "and is told that the new master fails",
			hold:  func(ctx context.Context, _ *fakeStage, _ *transaction) error { <-ctx.Done(); return context.Cause(ctx) },
			then:  func(*newMaster, *Predecessor, error) {},
			calls: []string{"parcel worker", "hold", "undo", "left"}, reason: "out of luck", tail: []string{"a line"},
		},
		{
			name:  "until the new master dies",
			hold:  func(ctx context.Context, _ *fakeStage, _ *transaction) error { <-ctx.Done(); return context.Cause(ctx) },
			calls: []string{"parcel worker", "hold", "undo", "left"}, reason: "child exited", is: errExit,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noLeaks(t, func() {
				var tr *transaction
				var stage *fakeStage
				child := stagedMaster(t, tc.then)
				switch {
				case errors.Is(tc.is, errExit):
					child = func(c *newMaster) {
						p := hello(t, c)
						defer p.Close()
						if err := errors.Join(present(p), send(p.conn, wire{Kind: kindReady})); err != nil {
							t.Error(err)
						}
						<-stage.holding
					}
				case tc.reason == "out of luck":
					child = func(c *newMaster) {
						p := hello(t, c)
						defer p.Close()
						if err := errors.Join(present(p), send(p.conn, wire{Kind: kindReady})); err != nil {
							t.Error(err)
						}
						<-stage.holding
						p.Fail("out of luck", []string{"a line"})
						<-p.Aborted()
					}
				}
				tr = newTransaction(t, child)
				stage = newFakeStage(func(ctx context.Context, s *fakeStage) error { return tc.hold(ctx, s, tr) })
				tr.Stage, tr.Offer.Stage = stage, true
				err := tr.run(t, t.Context())
				tr.h.closeTable()
				stage.close()
				if got := stage.called(); !slices.Equal(got, tc.calls) {
					t.Errorf("the stage was told %q, want %q", got, tc.calls)
				}
				if tc.reason == "" {
					if err != nil || len(tr.ended) > 0 {
						t.Errorf("got %v, ended %v", err, tr.ended)
					}
					return
				}
				ae := abortError(t, err)
				if !strings.Contains(ae.Reason, tc.reason) || ae.Phase != PhaseStaged || !slices.Equal(ae.Tail, tc.tail) || tc.is != nil && !errors.Is(err, tc.is) {
					t.Errorf("aborted with %+v, want %q and the tail %q", ae, tc.reason, tc.tail)
				}
				if frozen, _ := tr.owner.counts(); frozen != 0 {
					t.Error("the owner was frozen")
				}
			})
		})
	}
}

// The share goes before the new generation is told to end, and a stage that does not return is not waited for until then.
func TestAttempt_TakesTheShareFirst(t *testing.T) {
	told := make(chan struct{})
	tr := newTransaction(t, stagedMaster(t, func(*newMaster, *Predecessor, error) { close(told) }))
	stage := newFakeStage(func(_ context.Context, s *fakeStage) error {
		<-told
		return syscall.EINTR
	})
	tr.Stage, tr.Offer.Stage = stage, true
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-stage.holding
		cancel(errors.New("gapless stops"))
	}()
	err := tr.run(t, ctx)
	tr.h.closeTable()
	stage.close()
	if ae := abortError(t, err); ae.Reason != "gapless stops" {
		t.Errorf("aborted with %q", ae.Reason)
	}
	select {
	case <-stage.undone:
	default:
		t.Error("the share was not taken away")
	}
}

// What becomes of the workers reaches the stage, in order and with all that is known.
func TestAttempt_TellsTheStageOfWorkers(t *testing.T) {
	all := []Seats{
		{Slot: 1, PID: 7, Lanes: []string{"web#1"}, Reason: "exit status 1", Tail: []string{"no"}},
		{Slot: 1, PID: 8, Lanes: []string{"web#1"}, Never: true, Reason: "exit status 2"},
		{Slot: 1, PID: 9, Lanes: []string{"web#1"}, Up: true},
	}
	tr := newTransaction(t, func(c *newMaster) {
		p := hello(t, c)
		defer p.Close()
		if err := errors.Join(present(p), send(p.conn, wire{Kind: kindReady})); err != nil {
			t.Error(err)
		}
		for _, s := range all {
			p.Seats(s)
		}
		p.Progress(Progress{Phase: PhaseWorkers, Ready: 3, Total: 2, Limit: time.Nanosecond}) // means nothing any more
		<-p.committed
		if err := c.Ready(); err != nil {
			t.Error(err)
		}
	})
	stage := newFakeStage(func(ctx context.Context, s *fakeStage) error {
		for _, want := range all {
			if got := <-s.seats; got.PID != want.PID || got.Up != want.Up || got.Never != want.Never || got.Reason != want.Reason ||
				!slices.Equal(got.Tail, want.Tail) || !slices.Equal(got.Lanes, want.Lanes) {
				t.Errorf("told %+v, want %+v", got, want)
			}
		}
		return nil
	})
	tr.Stage, tr.Offer.Stage = stage, true
	if err := tr.run(t, t.Context()); err != nil {
		t.Error(err)
	}
	tr.h.closeTable()
	stage.close()
}
