package lifecycle

import (
	"testing"

	"gapless/internal/control"
	"gapless/workerpool"
)

// The status says of readiness what /readyz says.
func TestVerdict(t *testing.T) {
	ready, dead := workerpool.SlotInfo{PID: 2, Ready: true}, workerpool.SlotInfo{}
	failing := workerpool.SlotInfo{Failures: 3, LastDeath: "exit status 1"}
	const why = "worker 0 has failed 3 times in a row, the last time: exit status 1"
	for _, tt := range []struct {
		name, state         string
		slots               []workerpool.SlotInfo
		want, reason, words string
	}{
		{"all are ready", control.StateServing, []workerpool.SlotInfo{ready, ready},
			control.StateServing, "", "generation 1 serving with 2 of 2 workers"},
		{"one is ready", control.StateServing, []workerpool.SlotInfo{dead, ready},
			control.StateServing, "", "generation 1 serving with 1 of 2 workers"},
		{"none is ready", control.StateServing, []workerpool.SlotInfo{dead, dead},
			control.StateDegraded, "no worker is ready", "generation 1 degraded with 0 of 2 workers: no worker is ready"},
		{"none is ready, and why is known", control.StateServing, []workerpool.SlotInfo{failing, dead},
			control.StateDegraded, why, "generation 1 degraded with 0 of 2 workers: " + why},
		{"none is ready yet", "starting", []workerpool.SlotInfo{dead, dead}, "starting", "", "generation 1 starting with 0 of 2 workers"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := &master{generation: 1, herald: &herald{}}
			state, reason, words := m.verdict(tt.state, tt.slots, nil)
			if state != tt.want || reason != tt.reason || words != tt.words {
				t.Errorf("got %q, %q, %q\nwant %q, %q, %q", state, reason, words, tt.want, tt.reason, tt.words)
			}
		})
	}
}
