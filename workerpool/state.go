package workerpool

import (
	"fmt"
	"slices"
)

// State is what a worker is doing.
type State int

// The states, in the order in which a worker goes through them.
const (
	Starting State = iota // its process runs, and it has not yet been seen to serve
	Ready                 // it takes new connections
	Draining              // it takes none any more and finishes what it has
	Killing               // its time to drain was over, and it got KILL
	Exited                // it is gone and reaped
)

var stateNames = [...]string{"starting", "ready", "draining", "killing", "exited"}

// String returns the state's name as it stands in logs and in status.
func (s State) String() string {
	if s < 0 || int(s) >= len(stateNames) {
		return fmt.Sprintf("state(%d)", int(s))
	}
	return stateNames[s]
}

// MarshalText lets a state travel by name, so that masters of different versions agree.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the name of a state.
func (s *State) UnmarshalText(text []byte) error {
	i := slices.Index(stateNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("no worker state is called %q", text)
	}
	*s = State(i)
	return nil
}

// moves holds, for each state, those that may follow it.
var moves = [...][]State{
	Starting: {Ready, Draining, Killing, Exited},
	Ready:    {Draining, Killing, Exited},
	Draining: {Killing, Exited},
	Killing:  {Exited},
	Exited:   {},
}

// TransitionError says that a worker was to make a move that its state does not allow: a mistake of ours.
type TransitionError struct {
	Worker   ID
	From, To State
}

func (e *TransitionError) Error() string {
	return fmt.Sprintf("worker %s cannot go from %s to %s", e.Worker, e.From, e.To)
}

func (s State) mayBecome(next State) bool { return slices.Contains(moves[s], next) }
