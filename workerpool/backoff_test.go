package workerpool

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestBackoff_DoublesUpToItsMaximum(t *testing.T) {
	for _, tc := range []struct {
		name     string
		failures int
		random   float64
		want     time.Duration
	}{
		{"no failure", 0, 0, 0},
		{"the first comes at once", 1, 0, 0},
		{"the first has no jitter", 1, 0.99, 0},
		{"the second", 2, 0, 100 * time.Millisecond},
		{"the third", 3, 0, 200 * time.Millisecond},
		{"the fourth", 4, 0, 400 * time.Millisecond},
		{"the tenth", 10, 0, 25600 * time.Millisecond},
		{"the maximum", 11, 0, 30 * time.Second},
		{"stays", 17, 0, 30 * time.Second},
		{"beyond the shift", 18, 0, 30 * time.Second},
		{"no overflow", math.MaxInt, 0, 30 * time.Second},
		{"half the jitter", 2, 0.5, 75 * time.Millisecond},
		{"of the maximum", 100, 0.5, 22500 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := backoff(tc.failures, tc.random); got != tc.want {
				t.Errorf("backoff(%d, %v) = %v, want %v", tc.failures, tc.random, got, tc.want)
			}
		})
	}
}

func TestBackoff_JitterTakesAwayAtMostAHalf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		failures := rapid.IntRange(0, 1000).Draw(t, "failures")
		random := rapid.Float64Range(0, math.Nextafter(1, 0)).Draw(t, "random")
		full, got := backoff(failures, 0), backoff(failures, random)
		if got > full || got < full/2 {
			t.Fatalf("backoff(%d, %v) = %v; without jitter it is %v", failures, random, got, full)
		}
		if next := backoff(failures+1, 0); next < full {
			t.Fatalf("delays shrink from %v to %v", full, next)
		}
	})
}
