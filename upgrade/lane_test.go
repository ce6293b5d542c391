package upgrade

import (
	"errors"
	"slices"
	"testing"

	"go.uber.org/zap"
)

func TestLane_MovesOnlyAsTheTableSays(t *testing.T) {
	allowed := map[[2]LaneState]bool{
		{LaneFree, LaneStarting}: true, {LaneStarting, LaneActive}: true, {LaneStarting, LaneFree}: true,
		{LaneActive, LaneDraining}: true, {LaneDraining, LaneFree}: true, {LaneDraining, LaneActive}: true,
		{LaneDraining, LaneStarting}: true,
	}
	for from := range laneStateCount {
		for to := range laneStateCount {
			l := &Lane{inventory: &Inventory{log: zap.NewNop()}, name: "web#0", state: from, weight: 7, out: true}
			err := l.move(to, 3)
			if from == to || allowed[[2]LaneState{from, to}] {
				want := 0
				if to == LaneActive {
					want = 3
				}
				if err != nil || l.state != to || l.weight != want {
					t.Errorf("%s to %s: %v, state %s, weight %d", from, to, err, l.state, l.weight)
				}
				if to != LaneActive && l.out {
					t.Errorf("%s to %s: still out", from, to)
				}
				continue
			}
			var refused *LaneMoveError
			if !errors.As(err, &refused) || l.state != from || l.weight != 7 {
				t.Errorf("%s to %s: %v, state %s", from, to, err, l.state)
			}
		}
	}
}

func TestNamesOfStatesAndModes(t *testing.T) {
	var seen []string
	for s := range laneStateCount {
		text, err := s.MarshalText()
		var back LaneState
		if err != nil || len(text) == 0 || back.UnmarshalText(text) != nil || back != s || s.String() != string(text) {
			t.Errorf("state %d: %q, %v", int(s), text, err)
		}
		seen = append(seen, s.String())
	}
	for m := range modeCount {
		text, err := m.MarshalText()
		var back Mode
		if err != nil || len(text) == 0 || back.UnmarshalText(text) != nil || back != m || m.String() != string(text) {
			t.Errorf("mode %d: %q, %v", int(m), text, err)
		}
		seen = append(seen, m.String())
	}
	slices.Sort(seen)
	if len(slices.Compact(seen)) != int(laneStateCount)+int(modeCount) {
		t.Errorf("names twice: %v", seen)
	}
	var s LaneState
	var m Mode
	if s.UnmarshalText([]byte("no")) == nil || m.UnmarshalText([]byte("no")) == nil {
		t.Error("unknown names are read")
	}
	if _, err := laneStateCount.MarshalText(); err == nil {
		t.Error("a state without a name is written")
	}
}
