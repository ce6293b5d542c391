//go:build linux

package bench

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

// quantile is the nearest-rank quantile: of 25 values the 0.99 is the largest.
func quantile[T cmp.Ordered](values []T, q float64) T {
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[max(rank, 0)]
}

func median[T cmp.Ordered](values []T) T { return quantile(values, 0.5) }

func milliseconds(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/1e6) }
func mebibytes(n int64) string            { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
