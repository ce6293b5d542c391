//go:build !race

package gapless

import "testing"

// The race detector makes sync.Pool forget at random, so it has no say here.
func TestServe_AllocatesNothingPerRequest(t *testing.T) {
	for _, tc := range trips {
		t.Run(tc.name, func(t *testing.T) {
			measure := func(addr string) float64 {
				tr := newTrip(t, addr, tc.send)
				return testing.AllocsPerRun(3000, func() { tr.run(t) })
			}
			bare, ours := measure(bareAddr(t)), measure(oursAddr(t))
			if ours > bare {
				t.Errorf("%v allocations per request, net/http alone makes %v", ours, bare)
			}
		})
	}
}
