package lifecycle

import (
	"errors"
	"slices"
	"testing"
)

func TestGenerationBox_FollowsItsTable(t *testing.T) {
	allowed := map[GenerationState][]GenerationState{
		GenerationStarting: {GenerationStaged, GenerationActive, GenerationAborted},
		GenerationStaged:   {GenerationWindow, GenerationActive, GenerationAborted},
		GenerationWindow:   {GenerationActive, GenerationAborted},
		GenerationActive:   {GenerationKept, GenerationDraining},
		GenerationKept:     {GenerationActive, GenerationDraining},
		GenerationAborted:  {GenerationDraining, GenerationGone},
		GenerationDraining: {GenerationGone},
	}
	for from := range generationStateCount {
		for to := range generationStateCount {
			t.Run(from.String()+" to "+to.String(), func(t *testing.T) {
				b := newGenerationBox(7, from)
				var seen [][2]GenerationState
				b.observe = func(from, to GenerationState) { seen = append(seen, [2]GenerationState{from, to}) }
				err := b.to(to)
				var move *GenerationMoveError
				switch {
				case from == to:
					if err != nil || len(seen) != 0 {
						t.Errorf("staying is %v, observed %v", err, seen)
					}
				case slices.Contains(allowed[from], to):
					if err != nil || b.get() != to || len(seen) != 1 || seen[0] != [2]GenerationState{from, to} {
						t.Errorf("got %v, now %s, observed %v", err, b.get(), seen)
					}
				default:
					if !errors.As(err, &move) || *move != (GenerationMoveError{7, from, to}) || b.get() != from || len(seen) != 0 {
						t.Errorf("got %v, now %s, observed %v", err, b.get(), seen)
					}
				}
			})
		}
	}
	if got := GenerationState(99).String(); got != "generation state(99)" {
		t.Errorf("an unknown state is called %q", got)
	}
}
