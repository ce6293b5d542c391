package upgrade

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gapless/internal/packet"
)

func TestAttempt_PutsTheNewMasterInCharge(t *testing.T) {
	noLeaks(t, func() {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		type state struct{ Workers []int }
		var offer Offer
		var got state
		tr := newTransaction(t, func(c *newMaster) {
			p := hello(t, c)
			if p == nil {
				return
			}
			defer p.Close()
			offer = p.Offer()
			p.Progress(Progress{Phase: PhaseSteps})
			for i := range 3 {
				p.Progress(Progress{Phase: PhaseWorkers, Ready: i, Total: 3, Limit: time.Minute})
			}
			if err := p.Commit(t.Context(), func(parcels []Parcel) error {
				if len(parcels) != 2 || parcels[0].Kind != "state" || parcels[1].Kind != "files" {
					t.Errorf("parcels %+v", parcels)
					return nil
				}
				if err := parcels[0].Open(&got); err != nil {
					t.Error(err)
				}
				if len(parcels[1].Files) != 1 {
					t.Fatalf("%d files came", len(parcels[1].Files))
				}
				defer parcels[1].Files[0].Close()
				if _, err := parcels[1].Files[0].WriteString("from the new master"); err != nil {
					t.Error(err)
				}
				return nil
			}); err != nil {
				t.Errorf("commit: %v", err)
			}
		})
		tr.owner.freeze = func() ([]Parcel, error) {
			first, err := NewParcel("state", state{[]int{1, 2, 3}})
			if err != nil {
				return nil, err
			}
			second, err := NewParcel("files", nil, w)
			return []Parcel{first, second}, err
		}
		if err := tr.run(t, t.Context()); err != nil {
			t.Fatal(err)
		}
		tr.h.closeTable()
		if want := (Offer{Version: protocolVersion, Generation: 7, PID: os.Getpid(), Workers: 3}); !reflect.DeepEqual(offer, want) {
			t.Errorf("offered %+v, want %+v", offer, want)
		}
		if !slices.Equal(got.Workers, []int{1, 2, 3}) {
			t.Errorf("left was %+v", got)
		}
		if data, err := io.ReadAll(r); string(data) != "from the new master" { // ends because all copies are closed
			t.Errorf("over the file came %q, %v", data, err)
		}
		if want := []Phase{PhasePrepare, PhaseSteps, PhaseWorkers, PhaseCommit}; !slices.Equal(tr.owner.phases(), want) {
			t.Errorf("told of %q, want %q", tr.owner.phases(), want)
		}
		if frozen, thawed := tr.owner.counts(); frozen != 1 || thawed != 0 || len(tr.ended) != 0 {
			t.Errorf("frozen %d times, thawed %d times, ended %v", frozen, thawed, tr.ended)
		}
	})
}

func TestAttempt_Aborts(t *testing.T) {
	type abort struct {
		name   string
		child  func(t *testing.T, c *newMaster)
		setup  func(tr *transaction)
		phase  Phase
		reason string
		tail   []string
		is     error
		pid    int
		frozen bool
	}
	for _, tc := range []abort{
		{
			name: "tableflip starts nothing", child: func(*testing.T, *newMaster) {},
			setup: func(tr *transaction) { tr.h.fails = fmt.Errorf("can't start child: %w", os.ErrNotExist) },
			phase: PhaseMaster, reason: "file does not exist", is: os.ErrNotExist,
		},
		{
			name: "it exits at once", child: func(*testing.T, *newMaster) {},
			phase: PhaseMaster, reason: "child exited: exit status 1", is: errExit,
		},
		{
			name: "it exits after hello", child: func(t *testing.T, c *newMaster) { hello(t, c).Close() },
			phase: PhasePrepare, reason: "child exited: exit status 1", is: errExit, pid: newMasterPID,
		},
		{
			name: "it says why", pid: newMasterPID,
			child: func(t *testing.T, c *newMaster) {
				p := hello(t, c)
				defer p.Close()
				p.Progress(Progress{Phase: PhaseWorkers})
				p.Fail("worker 2 (pid 99) ended before it was ready: exit status 3", []string{"import app", "no such module"})
			},
			phase: PhaseWorkers, reason: "worker 2 (pid 99) ended before it was ready: exit status 3",
			tail: []string{"import app", "no such module"}, is: errExit,
		},
		{
			name: "it never says a word", child: func(_ *testing.T, c *newMaster) { <-c.h.killed },
			setup: func(tr *transaction) { tr.Hello = 20 * time.Millisecond },
			phase: PhaseMaster, reason: "in time", is: context.DeadlineExceeded,
		},
		{
			name: "it says a word and hangs before it joins", pid: 0,
			child: func(t *testing.T, c *newMaster) {
				f, err := c.File(successorFile)
				if err != nil {
					t.Error(err)
					return
				}
				conn, err := packet.New(f)
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				_ = conn.Send("not a message of ours")
				<-c.h.killed
			},
			setup: func(tr *transaction) { tr.Hello = 50 * time.Millisecond },
			phase: PhaseMaster, reason: "in time", is: context.DeadlineExceeded,
		},
		{
			name: "the owner cannot freeze", pid: newMasterPID, frozen: true,
			child: commitOrEnd,
			setup: func(tr *transaction) {
				tr.owner.freeze = func() ([]Parcel, error) { return nil, errors.New("a worker's pidfd is gone") }
			},
			phase: PhaseCommit, reason: "freeze generation: a worker's pidfd is gone",
		},
		{
			name: "it dies while it takes over", pid: newMasterPID, frozen: true,
			child: func(t *testing.T, c *newMaster) {
				p := hello(t, c)
				defer p.Close()
				if err := p.Commit(t.Context(), func([]Parcel) error { return errors.New("cannot adopt") }); err == nil {
					t.Error("a failed accept commits")
				}
			},
			phase: PhaseCommit, reason: "child exited: exit status 1", is: errExit,
		},
		{
			name: "it says why it cannot take over", pid: newMasterPID, frozen: true,
			child: func(t *testing.T, c *newMaster) {
				p := hello(t, c)
				defer p.Close()
				err := p.Commit(t.Context(), func([]Parcel) error { return errors.New("cannot adopt worker 3") })
				p.Fail(err.Error(), nil)
			},
			phase: PhaseCommit, reason: "cannot adopt worker 3", is: errExit,
		},
		{
			name: "a parcel is too large", pid: newMasterPID, frozen: true,
			child: commitOrEnd,
			setup: func(tr *transaction) {
				tr.owner.freeze = func() ([]Parcel, error) {
					p, err := NewParcel("state", strings.Repeat("x", 1<<20))
					return []Parcel{p}, err
				}
			},
			phase: PhaseCommit, reason: "too large",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noLeaks(t, func() {
				tr := newTransaction(t, func(c *newMaster) { tc.child(t, c) })
				if tc.setup != nil {
					tc.setup(tr)
				}
				ae := abortError(t, tr.run(t, t.Context()))
				tr.h.closeTable()
				if ae.Phase != tc.phase || ae.PID != tc.pid || !strings.Contains(ae.Reason, tc.reason) {
					t.Errorf("got %+v; want phase %q, pid %d, reason %q", ae, tc.phase, tc.pid, tc.reason)
				}
				if !slices.Equal(ae.Tail, tc.tail) {
					t.Errorf("tail %q, want %q", ae.Tail, tc.tail)
				}
				if tc.is != nil && !errors.Is(ae, tc.is) {
					t.Errorf("%v is no %v", ae.Err, tc.is)
				}
				if want := "upgrade to generation 7 aborted while " + string(tc.phase) + ": "; !strings.HasPrefix(ae.Error(), want) {
					t.Errorf("%q does not begin with %q", ae, want)
				}
				if len(tr.ended) == 0 || tr.ended[len(tr.ended)-1] != tc.pid {
					t.Errorf("ended %v, want %d", tr.ended, tc.pid)
				}
				frozen, thawed := tr.owner.counts()
				if want := map[bool]int{true: 1}[tc.frozen]; frozen != want || thawed != want {
					t.Errorf("frozen %d times, thawed %d times, want %d", frozen, thawed, want)
				}
			})
		})
	}
}

// commitOrEnd asks for the commit and ends when it is aborted.
func commitOrEnd(t *testing.T, c *newMaster) {
	p := hello(t, c)
	defer p.Close()
	if err := p.Commit(t.Context(), func([]Parcel) error { return nil }); err == nil {
		t.Error("committed")
	}
	select {
	case <-p.Aborted():
	default:
		t.Error("not aborted")
	}
}

func TestAttempt_CanBeCalledOffInEachPhase(t *testing.T) {
	why := errors.New("gapless is stopped")
	for _, phase := range []Phase{PhaseMaster, PhasePrepare, PhaseSteps, PhaseWorkers} {
		for _, heeds := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, heeded %v", phase, heeds), func(t *testing.T) {
				noLeaks(t, func() {
					ctx, cancel := context.WithCancelCause(t.Context())
					defer cancel(nil)
					var heard error
					tr := newTransaction(t, func(c *newMaster) {
						p, err := Join(c)
						if err != nil {
							t.Error(err)
							return
						}
						defer p.Close()
						if phase != PhaseMaster {
							p.Progress(Progress{Phase: phase, PID: newMasterPID})
						} else {
							cancel(why)
						}
						<-p.Aborted()
						heard = p.Reason()
						if !heeds {
							<-c.h.killed
						}
					})
					tr.Owner = &onProgress{tr.owner, func() { cancel(why) }}
					ae := abortError(t, tr.run(t, ctx))
					tr.h.closeTable()
					if ae.Phase != phase || ae.Reason != why.Error() || !errors.Is(ae, why) {
						t.Errorf("got %+v", ae)
					}
					if heard == nil || heard.Error() != why.Error() {
						t.Errorf("the new master heard %v", heard)
					}
					if frozen, thawed := tr.owner.counts(); frozen != 0 || thawed != 0 {
						t.Errorf("frozen %d, thawed %d", frozen, thawed)
					}
				})
			})
		}
	}
}

// onProgress is an owner that does something at each progress.
type onProgress struct {
	*fakeOwner
	do func()
}

func (o *onProgress) Progress(p Progress) { o.fakeOwner.Progress(p); o.do() }

// Between the commit's last packet and the new master's word, a call-off still counts if that master heeds it.
func TestAttempt_CalledOffWhileCommitting(t *testing.T) {
	noLeaks(t, func() {
		why := errors.New("gapless is stopped")
		ctx, cancel := context.WithCancelCause(t.Context())
		tr := newTransaction(t, func(c *newMaster) {
			p := hello(t, c)
			defer p.Close()
			err := p.Commit(t.Context(), func([]Parcel) error {
				cancel(why)
				<-c.h.killed // it hangs, and is killed
				return errors.New("killed")
			})
			if err == nil {
				t.Error("committed")
			}
		})
		ae := abortError(t, tr.run(t, ctx))
		tr.h.closeTable()
		if ae.Phase != PhaseCommit || !errors.Is(ae, why) {
			t.Errorf("got %+v", ae)
		}
		if frozen, thawed := tr.owner.counts(); frozen != 1 || thawed != 1 {
			t.Errorf("frozen %d, thawed %d", frozen, thawed)
		}
	})
}

func TestAttempt_ALimitCountsFromThePhase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Attempt{Owner: &fakeOwner{}, deadline: time.NewTimer(time.Hour)}
		defer a.deadline.Stop()
		a.progress(Progress{Phase: PhaseWorkers, Limit: 10 * time.Second, PID: 5})
		<-time.After(4 * time.Second)
		a.progress(Progress{Phase: PhaseWorkers, Ready: 1, Limit: 10 * time.Second}) // changes nothing
		began := time.Now()
		<-a.deadline.C
		if d := time.Since(began); d != 6*time.Second+phaseSlack {
			t.Errorf("the deadline came %v later, want %v", d, 6*time.Second+phaseSlack)
		}
		a.progress(Progress{Phase: PhaseSteps}) // as long as it wants
		select {
		case <-a.deadline.C:
			t.Error("a phase without a limit ended")
		case <-time.After(1000 * time.Hour):
		}
		if a.pid != 5 || a.phase != PhaseSteps {
			t.Errorf("pid %d, phase %s", a.pid, a.phase)
		}
	})
}
