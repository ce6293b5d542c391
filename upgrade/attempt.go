package upgrade

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"gapless/internal/packet"
)

// DefaultHelloTimeout is how long a new master may take until its first word. Starting a Go program takes
// milliseconds; a binary that takes longer is not gapless, or hangs.
const DefaultHelloTimeout = 20 * time.Second

// The times around the end of an attempt.
const (
	abortGrace    = time.Second      // for an aborted generation to end itself
	commitTimeout = 10 * time.Second // from the freeze until the new master has taken charge
	phaseSlack    = 5 * time.Second  // beyond a phase's own limit, which the new master keeps by itself
)

// Owner is the master in charge, as an Attempt sees it. The methods are called from the goroutine of Run.
type Owner interface {
	// Lanes opens or reuses lanes for the new generation. The files stay the owner's.
	Lanes(address string, count int) (names []string, files []*os.File, err error)
	// Progress is told of each step.
	Progress(Progress)
	// Freeze stops the owner where it is and returns what it leaves. The files become the attempt's.
	Freeze() ([]Parcel, error)
	// Thaw follows a Freeze whose commit failed: the owner goes on.
	Thaw()
}

// Attempt is one upgrade, seen from the master in charge: a transaction that either ends with the new master in charge,
// or with the new generation gone and nothing changed.
type Attempt struct {
	Handover Handover
	Owner    Owner
	Offer    Offer
	// End ends what is left of the new generation, whose master had the given PID (0: unknown). It is called after
	// every failure, and must return only when all is gone.
	End func(pid int)
	// Knock connects to one lane alone, for a new master that asks its workers whether they are ready. nil: refused.
	Knock func(address, lane string) (*os.File, error)
	// Hello is the time until the new master's first word; 0: DefaultHelloTimeout.
	Hello time.Duration
	// Stage decides when the new generation, once it is ready, takes charge. nil: at once.
	Stage Stage

	conn     *packet.Conn
	pid      int
	phase    Phase
	deadline *time.Timer
	frozen   bool

	held       <-chan error  // the stage's decision; nil before it is asked for, and after it is known
	holding    chan struct{} // closed when Hold has returned; nil before it is called
	cancelHold context.CancelCauseFunc
}

// Run performs the upgrade. With nil the new master is in charge, and the caller must exit at once. Otherwise the error
// is an *AbortError.
func (a *Attempt) Run(ctx context.Context) error {
	a.phase = PhaseMaster
	a.Offer.Version = protocolVersion
	mine, theirs, err := packet.Pair()
	if err != nil {
		return a.aborted(err.Error(), nil, err)
	}
	if a.conn, err = packet.New(mine); err != nil {
		theirs.Close()
		return a.aborted(err.Error(), nil, err)
	}
	defer a.conn.Close()
	// Our own copy of the new master's end: the last word on it is ours, and says that nothing comes after.
	err = a.Handover.AddFile(successorFile, theirs)
	own, ownErr := packet.New(theirs)
	if ownErr == nil {
		defer own.Close()
	}
	if err = errors.Join(err, ownErr); err != nil {
		return a.aborted(err.Error(), nil, err)
	}
	if err := send(a.conn, wire{Kind: kindOffer, Offer: &a.Offer}); err != nil {
		return a.aborted(err.Error(), nil, err)
	}

	heard := make(chan wire)
	reading := make(chan struct{})
	go func() {
		defer close(reading)
		defer close(heard)
		for {
			w, err := receive(a.conn)
			if err != nil || w.Kind == kindEnd {
				return
			}
			heard <- w
		}
	}()
	upgraded := make(chan error, 1)
	go func() { upgraded <- startNext(a.Handover) }()

	end := sync.OnceFunc(func() { _ = send(own, wire{Kind: kindEnd}) })
	err = a.drive(ctx, heard, upgraded, end)
	// Whatever the outcome, the reader ends before we return.
	end()
	for w := range heard {
		packet.CloseAll(w.files)
	}
	<-reading
	if a.cancelHold != nil {
		a.cancelHold(nil)
	}
	return err
}

// drive is the attempt's one loop.
func (a *Attempt) drive(ctx context.Context, heard <-chan wire, upgraded <-chan error, end func()) error {
	hello := a.Hello
	if hello <= 0 {
		hello = DefaultHelloTimeout
	}
	a.deadline = time.NewTimer(hello)
	defer a.deadline.Stop()
	var failed *failure // what the new master said of its end
	var cause error     // why we end it
	var kill <-chan time.Time
	listen := heard
	give := func(reason error) {
		if cause == nil {
			cause = reason
			a.undo(reason)
			_ = send(a.conn, wire{Kind: kindAbort, Reason: reason.Error(), Spare: a.spared()})
			kill = time.After(abortGrace)
		}
	}
	for {
		select {
		case err := <-upgraded:
			if err == nil {
				return nil
			}
			// The new master has ended, or never began. Its last words may still be on the way to us.
			end()
			for w := range heard {
				switch {
				case w.Kind == kindParcel:
					a.parcel(w) // what it has left, as it was last
					continue
				case w.Kind == kindFailure:
					failed = w.Failure
				case w.Kind == kindProgress && w.Progress != nil:
					a.progress(*w.Progress) // who it was, and how far it got
				}
				packet.CloseAll(w.files)
			}
			return a.failed(failed, cause, err)

		case w, ok := <-listen:
			if !ok {
				listen = nil // the channel broke; tableflip will tell of the process
				continue
			}
			if w.Kind == kindParcel {
				a.parcel(w)
				continue
			}
			packet.CloseAll(w.files)
			switch w.Kind {
			case kindFailure:
				failed = w.Failure
				if a.phase == PhaseStaged && failed != nil {
					give(&StageError{Reason: failed.Reason, Tail: failed.Tail})
				}
			case kindSeats:
				if a.Stage != nil && w.Seats != nil {
					a.Stage.Seats(*w.Seats)
				}
			case kindProgress:
				if w.Progress != nil {
					a.progress(*w.Progress)
				}
			case kindLanes:
				if err := a.lanes(w.Lanes); err != nil {
					give(err)
				}
			case kindKnock:
				if err := a.knock(w.Lanes); err != nil {
					give(err)
				}
			case kindReady:
				switch {
				case cause != nil || a.holding != nil:
				case a.Stage != nil:
					a.hold(ctx)
				default:
					if err := a.commit(); err != nil {
						give(err)
					}
				}
			default: // of a newer version; it can do without
			}

		case err := <-a.held:
			a.held = nil
			if cause != nil {
				continue
			}
			if err == nil {
				err = a.commit()
			}
			if err != nil {
				give(err)
			}

		case <-a.deadline.C:
			give(fmt.Errorf("no end of it in time: %w", context.DeadlineExceeded))

		case <-kill:
			kill = nil
			a.End(a.pid)

		case <-ctx.Done():
			give(context.Cause(ctx))
			ctx = context.Background()
		}
	}
}

func (a *Attempt) progress(p Progress) {
	if a.holding != nil {
		return // it is past that
	}
	if p.PID != 0 {
		a.pid = p.PID
	}
	if p.Phase != a.phase {
		a.phase = p.Phase
		if p.Limit > 0 {
			a.deadline.Reset(p.Limit + phaseSlack)
		} else {
			a.deadline.Stop()
		}
	}
	a.Owner.Progress(p)
}

func (a *Attempt) lanes(r *laneRequest) error {
	if r == nil {
		return errors.New("a request for lanes without an address")
	}
	names, files, err := a.Owner.Lanes(r.Address, r.Count)
	if err != nil {
		return send(a.conn, wire{Kind: kindRefused, Reason: err.Error()})
	}
	return sendLanes(a.conn, names, files)
}

func (a *Attempt) knock(r *laneRequest) error {
	if r == nil || a.Knock == nil {
		return send(a.conn, wire{Kind: kindRefused, Reason: "this master cannot connect to a single lane"})
	}
	f, err := a.Knock(r.Address, r.Lane)
	if err != nil {
		return send(a.conn, wire{Kind: kindRefused, Reason: err.Error()})
	}
	defer f.Close()
	return sendLanes(a.conn, []string{r.Lane}, []*os.File{f})
}

// commit freezes the owner and sends all that it leaves. From the last packet on the new master may take charge.
func (a *Attempt) commit() error {
	a.phase = PhaseCommit
	a.deadline.Reset(commitTimeout)
	a.Owner.Progress(Progress{Phase: PhaseCommit})
	a.frozen = true
	parcels, err := a.Owner.Freeze()
	defer func() {
		for _, p := range parcels {
			packet.CloseAll(p.Files)
		}
	}()
	if err != nil {
		return fmt.Errorf("freeze generation: %w", err)
	}
	for _, p := range parcels {
		if err := send(a.conn, wire{Kind: kindParcel, Parcel: p.Kind, Data: p.Data, files: p.Files}); err != nil {
			return err
		}
	}
	return send(a.conn, wire{Kind: kindCommit})
}

// failed ends an attempt whose master has gone: all that it started goes too, and the owner goes on.
func (a *Attempt) failed(f *failure, cause, err error) error {
	a.undo(err)
	a.End(a.pid)
	if a.frozen {
		a.Owner.Thaw()
	}
	a.unstaged()
	switch {
	case cause != nil && a.holding != nil:
		reason, tail := reasonOf(cause)
		return a.aborted(reason, tail, cause)
	case f != nil:
		a.phase = f.Phase
		return a.aborted(f.Reason, f.Tail, err)
	case cause != nil:
		return a.aborted(cause.Error(), nil, cause)
	default:
		return a.aborted(strings.TrimPrefix(err.Error(), "can't start child: "), nil, err)
	}
}

func (a *Attempt) aborted(reason string, tail []string, err error) error {
	return &AbortError{Generation: a.Offer.Generation, PID: a.pid, Phase: a.phase, Reason: reason, Tail: tail, Err: err}
}
