package lifecycle

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"gapless/internal/control"
)

// GenerationState is where a generation stands, as the master in charge sees it.
type GenerationState int

// The states of a generation. Up to and including GenerationWindow everything is undone by ending the generation.
//
//	starting ─▶ staged ─▶ window ─▶ active ◀─▶ kept
//	   │  │       │ │       │         │          │
//	   │  └───────┼─┼───────┼─▶ ▲     ├──────────┴─▶ draining ─▶ gone
//	   └──────────┴─┼───────┴─▶ aborted ─▶ draining, gone
//	                └─▶ active
const (
	GenerationStarting GenerationState = iota // not all of its workers are ready
	GenerationStaged                          // ready, beside the one in charge, with a share of new connections or none
	GenerationWindow                          // it has all new connections, and is not in charge before its window has ended
	GenerationActive                          // in charge
	GenerationKept                            // in charge and whole, without new connections: another one is in its window
	GenerationAborted                         // it will not take charge, and is being ended
	GenerationDraining                        // finishing what it has
	GenerationGone                            // its last process is gone
	generationStateCount
)

var generationStateNames = [generationStateCount]string{control.GenerationStarting, control.GenerationStaged, control.GenerationWindow,
	control.GenerationServing, control.GenerationKept, control.GenerationAborted, control.GenerationDraining, "gone"}

// String returns the name that status shows.
func (s GenerationState) String() string {
	if s < 0 || s >= generationStateCount {
		return fmt.Sprintf("generation state(%d)", int(s))
	}
	return generationStateNames[s]
}

// generationMoves is the one table of what may follow what.
var generationMoves = [generationStateCount][]GenerationState{
	GenerationStarting: {GenerationStaged, GenerationActive, GenerationAborted},
	GenerationStaged:   {GenerationWindow, GenerationActive, GenerationAborted},
	GenerationWindow:   {GenerationActive, GenerationAborted},
	GenerationActive:   {GenerationKept, GenerationDraining},
	GenerationKept:     {GenerationActive, GenerationDraining},
	GenerationAborted:  {GenerationDraining, GenerationGone},
	GenerationDraining: {GenerationGone},
	GenerationGone:     {},
}

// GenerationMoveError says that a generation was to make a move that its state does not allow: a mistake of ours.
type GenerationMoveError struct {
	Generation int
	From, To   GenerationState
}

func (e *GenerationMoveError) Error() string {
	return fmt.Sprintf("generation %d is %s and cannot become %s", e.Generation, e.From, e.To)
}

// generationBox holds a generation's state. Its to is the only writer.
type generationBox struct {
	number  int
	observe func(from, to GenerationState) // nil: nobody is told

	mu    sync.Mutex
	now   GenerationState
	since time.Time
}

func newGenerationBox(number int, state GenerationState) *generationBox {
	return &generationBox{number: number, now: state, since: time.Now()}
}

func (b *generationBox) get() GenerationState {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now
}

// to moves; to the state that it has is no move.
func (b *generationBox) to(next GenerationState) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now == next {
		return nil
	}
	if !slices.Contains(generationMoves[b.now], next) {
		return &GenerationMoveError{b.number, b.now, next}
	}
	prev := b.now
	b.now, b.since = next, time.Now()
	if b.observe != nil {
		b.observe(prev, next)
	}
	return nil
}
