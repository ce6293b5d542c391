package lifecycle

import (
	"math"
	"testing"
)

func TestSplitWeights_GivesTheShare(t *testing.T) {
	for _, counts := range [][2]int{{1, 1}, {2, 2}, {4, 4}, {2, 3}, {8, 1}, {1, 8}, {64, 64}, {7, 13}, {400, 400}} {
		own, staged := counts[0], counts[1]
		for percent := range 101 {
			a, b := splitWeights(percent, own, staged)
			sum := a*own + b*staged
			if b*staged*100 != percent*sum || sum <= 0 || sum > maxWeightSum || a < 0 || b < 0 {
				t.Fatalf("%d %% with %d and %d lanes: weights %d and %d are %d of %d", percent, own, staged, a, b, b*staged, sum)
			}
		}
	}
}

func TestSplitWeights_StaysInsideTheProgramWithManyLanes(t *testing.T) {
	for _, counts := range [][2]int{{1000, 1001}, {4096, 4095}, {4095, 1}, {1, 4095}, {1009, 997}} {
		own, staged := counts[0], counts[1]
		for percent := 1; percent < 100; percent++ {
			a, b := splitWeights(percent, own, staged)
			sum := a*own + b*staged
			share := float64(b*staged) / float64(sum) * 100
			if a < 1 || b < 1 || sum > maxWeightSum || math.Abs(share-float64(percent)) > 0.1 {
				t.Fatalf("%d %% with %d and %d lanes: weights %d and %d are %.3f %% of %d", percent, own, staged, a, b, share, sum)
			}
		}
	}
}

func TestSplitWeights_NobodyReadyGetsNothing(t *testing.T) {
	for _, tt := range []struct{ percent, own, staged, a, b int }{
		{0, 2, 2, 1, 0}, {50, 2, 0, 1, 0}, {100, 2, 2, 0, 1}, {100, 2, 0, 1, 0}, {30, 0, 2, 0, 1}, {0, 0, 2, 1, 0},
	} {
		if a, b := splitWeights(tt.percent, tt.own, tt.staged); a != tt.a || b != tt.b {
			t.Errorf("splitWeights(%d, %d, %d) = %d, %d, want %d, %d", tt.percent, tt.own, tt.staged, a, b, tt.a, tt.b)
		}
	}
}
