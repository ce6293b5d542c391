package lifecycle

import "testing"

func TestStateBox_FollowsItsTable(t *testing.T) {
	all := []State{Starting, Serving, Upgrading, Frozen, Stopping, Over, Holding}
	allowed := map[State][]State{
		Starting:  {Serving, Stopping, Over},
		Serving:   {Upgrading, Stopping, Over},
		Upgrading: {Serving, Frozen, Holding, Over},
		Holding:   {Upgrading, Frozen, Over},
		Frozen:    {Upgrading, Over},
		Stopping:  {Over},
	}
	for _, from := range all {
		for _, to := range all {
			t.Run(from.String()+" to "+to.String(), func(t *testing.T) {
				var seen [][2]State
				b := stateBox{now: from, observe: func(from, to State) { seen = append(seen, [2]State{from, to}) }}
				may := false
				for _, s := range allowed[from] {
					may = may || s == to
				}
				err := b.to(to)
				switch {
				case from == to:
					if err != nil || len(seen) != 0 {
						t.Errorf("staying is %v, observed %v", err, seen)
					}
				case may:
					if err != nil || b.get() != to || len(seen) != 1 || seen[0] != [2]State{from, to} {
						t.Errorf("got %v, now %s, observed %v", err, b.get(), seen)
					}
				default:
					want := "a master cannot go from " + from.String() + " to " + to.String()
					if err == nil || err.Error() != want || b.get() != from || len(seen) != 0 {
						t.Errorf("got %v, now %s, observed %v; want %q", err, b.get(), seen, want)
					}
				}
			})
		}
	}
	if got := State(99).String(); got != "state(99)" {
		t.Errorf("an unknown state is called %q", got)
	}
}
