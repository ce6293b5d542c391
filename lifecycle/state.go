package lifecycle

import (
	"fmt"
	"slices"
	"sync"
)

// State is what a master is doing.
type State int

// A master's states:
//
//	starting ──▶ serving ◀──▶ upgrading ◀──▶ frozen ──▶ over
//	    │            │            └──▶ holding ──▶ frozen, upgrading
//	    │            └────────────┬───▶ stopping ──────▶ over
//	    └─────────────────────────┴── from every state ──▶ over
const (
	Starting  State = iota // its workers are not all ready, or it waits for the commit; not in charge
	Serving                // in charge
	Upgrading              // in charge, while a new generation starts
	Frozen                 // it has offered the charge and may not act until that has failed or succeeded
	Stopping               // in charge, draining everything
	Over                   // about to exit
	Holding                // in charge, while a generation that is ready stands beside its own
)

var stateNames = [...]string{"starting", "serving", "upgrading", "frozen", "stopping", "over", "holding"}

func (s State) String() string {
	if s < 0 || int(s) >= len(stateNames) {
		return fmt.Sprintf("state(%d)", int(s))
	}
	return stateNames[s]
}

var moves = [...][]State{
	Starting:  {Serving, Stopping, Over},
	Serving:   {Upgrading, Stopping, Over},
	Upgrading: {Serving, Frozen, Holding, Over},
	Holding:   {Upgrading, Frozen, Over},
	Frozen:    {Upgrading, Over},
	Stopping:  {Over},
	Over:      {},
}

// stateBox holds a master's state. Its to is the only writer.
type stateBox struct {
	mu      sync.Mutex
	now     State
	observe func(from, to State)
}

func (b *stateBox) get() State {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now
}

func (b *stateBox) to(next State) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now == next {
		return nil
	}
	if !slices.Contains(moves[b.now], next) {
		return fmt.Errorf("a master cannot go from %s to %s", b.now, next)
	}
	prev := b.now
	b.now = next
	if b.observe != nil {
		b.observe(prev, next)
	}
	return nil
}
