package upgrade

import (
	"context"
	"errors"

	"gapless/internal/packet"
)

// Stage decides over a new generation that is ready and has not taken charge: how long it stands beside the owner's, with
// which share of new connections, and whether it takes over. Until the commit all of it can be undone.
//
// Parcel, Seats, Undo, Spared and Left are called from the goroutine of Attempt.Run.
type Stage interface {
	// Parcel takes what the new master says that it has: its facts, and its workers, each again when it has changed. All
	// that it has when it is ready comes before Hold. The files become the stage's.
	Parcel(Parcel)
	// Seats is told when a worker of the new generation has come or gone.
	Seats(Seats)
	// Hold is called once, on a goroutine of its own. It returns nil for the commit, else why the generation must go. ctx
	// ends when it must go for another reason.
	Hold(ctx context.Context) error
	// Undo takes all new connections away from the new generation, for good. It may be called more than once, and while
	// Hold runs.
	Undo()
	// Spared tells, after Undo, whether the new generation's workers may have clients. Then they are the owner's to drain.
	Spared() bool
	// Left follows an Undo when the new master has ended.
	Left()
}

// Seats tells of a worker of a generation that is staged: it takes new connections at these lanes from now on, or is gone.
type Seats struct {
	Slot   int      `json:"slot"`
	PID    int      `json:"pid"`
	Lanes  []string `json:"lanes"`
	Up     bool     `json:"up"`
	Never  bool     `json:"never,omitempty"`  // it is gone, and never was ready: it was to take a dead one's place
	Reason string   `json:"reason,omitempty"` // why it is gone
	Tail   []string `json:"tail,omitempty"`   // its last lines, where they are known
}

// StageError is why a Stage gives a generation up, with the last lines of whatever failed.
type StageError struct {
	Reason  string
	Tail    []string
	Ordered bool // somebody asked for it, and nothing failed
}

func (e *StageError) Error() string { return e.Reason }

// Spare tells the new master that its workers may have clients from now on: whatever happens, it leaves them alone when it
// ends. A Stage calls it before it gives them any share of new connections.
func (a *Attempt) Spare() error { return send(a.conn, wire{Kind: kindSpare}) }

// hold lets the stage decide; the answer comes on held.
func (a *Attempt) hold(ctx context.Context) {
	a.phase = PhaseStaged
	a.deadline.Stop()
	ctx, a.cancelHold = context.WithCancelCause(ctx)
	held := make(chan error, 1)
	a.held, a.holding = held, make(chan struct{})
	go func() {
		defer close(a.holding)
		held <- a.Stage.Hold(ctx)
	}()
}

// undo ends what the stage does for the new generation.
func (a *Attempt) undo(reason error) {
	if a.Stage == nil {
		return
	}
	if a.cancelHold != nil {
		a.cancelHold(reason)
	}
	a.Stage.Undo()
}

// unstaged follows the end of the new master.
func (a *Attempt) unstaged() {
	if a.holding != nil {
		<-a.holding
	}
	if a.Stage != nil {
		a.Stage.Left()
	}
}

// spared tells whether the new generation's workers are left to the owner.
func (a *Attempt) spared() bool { return a.Stage != nil && a.Stage.Spared() }

// parcel passes on what the new master has.
func (a *Attempt) parcel(w wire) {
	if a.Stage == nil {
		packet.CloseAll(w.files)
		return
	}
	a.Stage.Parcel(Parcel{Kind: w.Parcel, Data: w.Data, Files: w.files})
}

// reasonOf puts the end of a staged generation into words.
func reasonOf(cause error) (reason string, tail []string) {
	var stage *StageError
	if errors.As(cause, &stage) {
		tail = stage.Tail
	}
	return cause.Error(), tail
}

// Has tells the predecessor of one thing that this generation has: for one that stages it. The files stay the caller's.
func (p *Predecessor) Has(parcel Parcel) error {
	return send(p.conn, wire{Kind: kindParcel, Parcel: parcel.Kind, Data: parcel.Data, files: parcel.Files})
}

// Seats tells the predecessor that a worker has come or gone.
func (p *Predecessor) Seats(s Seats) { _ = send(p.conn, wire{Kind: kindSeats, Seats: &s}) }

// Spared tells whether this generation's workers may have clients: if it is aborted it leaves them as they are, for the
// predecessor or whoever takes that one's place.
func (p *Predecessor) Spared() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.spared
}

func (p *Predecessor) spare() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spared = true
}
