package upgrade

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// Handover is what tableflip does for an upgrade: it starts the next process from the binary on disk with every file
// that was added, carries one byte back when that process is ready, and tells it when we have gone.
// *tableflip.Upgrader is one; Upgrade, Ready and WaitForParent are explained there.
type Handover interface {
	Files
	Upgrade() error
	Ready() error
	WaitForParent(ctx context.Context) error
	HasParent() bool
}

// successorFile is the name of the successor channel among the files of a Handover. The last one added counts.
const successorFile = "successor"

// protocolVersion is that of the successor channel. Masters of different versions meet on it, so a change must leave
// older ones able to refuse in words.
const protocolVersion = 1

// Errors that callers of Attempt and Join act on.
var (
	// ErrAborted is what every failed upgrade is.
	ErrAborted = errors.New("upgrade aborted")
	// ErrPredecessorGone says that the master in charge ended before the commit.
	ErrPredecessorGone = errors.New("the master in charge has gone before the commit")
)

// AbortError says why an upgrade was aborted. The generation that it was to bring is gone, and the one before serves.
type AbortError struct {
	Generation int
	PID        int      // of the new master; 0 if it never said hello
	Phase      Phase    // how far it got
	Reason     string   // in words, for people
	Tail       []string // the last lines of the worker that failed, where they are known
	Err        error    // tableflip's, or the deadline's
}

func (e *AbortError) Error() string {
	return fmt.Sprintf("upgrade to generation %d aborted while %s: %s", e.Generation, e.Phase, e.Reason)
}

// Is makes every AbortError match ErrAborted.
func (e *AbortError) Is(target error) bool { return target == ErrAborted }

func (e *AbortError) Unwrap() error { return e.Err }

// Phase is how far an upgrade has got.
type Phase string

// The phases in their order.
const (
	PhaseMaster  Phase = "starting the master"
	PhasePrepare Phase = "preparing"
	PhaseSteps   Phase = "running previous steps"
	PhaseWorkers Phase = "starting workers"
	PhaseStaged  Phase = "staged" // ready, beside the generation in charge
	PhaseCommit  Phase = "committing"
)

// Offer is the first thing that a new master hears from the one in charge.
type Offer struct {
	Version    int `json:"version"`
	Generation int `json:"generation"` // the number of the generation that it is to bring
	PID        int `json:"pid"`        // of the master in charge
	Workers    int `json:"workers"`    // how many are wanted now; 0: as configured
	Configured int `json:"configured"` // how many the configuration of the master in charge says
	// Stage says that the master in charge wants to know what the new one has before the commit: see Predecessor.Has.
	Stage bool `json:"stage,omitempty"`
	// Addresses are those that are open, with ports resolved. A master of an older version tells none.
	Addresses []Address `json:"addresses,omitempty"`
}

// Progress is what the new master tells on the way.
type Progress struct {
	Phase Phase         `json:"phase"`
	PID   int           `json:"pid,omitempty"` // of the new master, in its first word
	Text  string        `json:"text,omitempty"`
	Ready int           `json:"ready,omitempty"` // workers that are ready,
	Total int           `json:"total,omitempty"` // of so many
	Limit time.Duration `json:"limit,omitempty"` // what the phase may take; 0: as long as it wants
}

// Parcel is one thing that a master leaves to the next: data whose meaning only its kind's owner knows, and files.
type Parcel struct {
	Kind  string
	Data  []byte
	Files []*os.File
}

// tableflip refuses an upgrade while it believes that the predecessor lives. It learns of the exit a moment later than
// WaitForParent, which Commit has waited for, and on a busy machine an upgrade may come in between. Its error for that has no
// type; this is the text of v1.2.3.
const (
	predecessorLives = "parent hasn't exited"
	predecessorPause = 2 * time.Millisecond
	predecessorLimit = 5 * time.Second
)

// startNext starts the next process, as soon as that may be.
func startNext(h Handover) error {
	for began := time.Now(); ; <-time.After(predecessorPause) {
		err := h.Upgrade()
		if err == nil || err.Error() != predecessorLives || time.Since(began) > predecessorLimit {
			return err
		}
	}
}
