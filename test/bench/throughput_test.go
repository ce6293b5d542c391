//go:build linux

package bench

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// Each pair of runs gives one ratio; their median is the figure. The order changes with each pair, for the sake of
// whatever a run leaves behind.
const (
	pairs       = 7
	runTime     = 2 * time.Second
	connections = 64
)

// BenchmarkThroughput_FourWorkers compares four workers of the wrapped server with the same handler in one bare process.
func BenchmarkThroughput_FourWorkers(b *testing.B) {
	compare(b, "4 workers / one bare net/http process", 4, 0.95)
}

// BenchmarkThroughput_Wrapper compares one worker with the bare process: what gapless.Serve costs a request.
func BenchmarkThroughput_Wrapper(b *testing.B) {
	compare(b, "1 worker through gapless.Serve / bare net/http", 1, 0.98)
}

func compare(b *testing.B, what string, workers int, target float64) {
	ours := run(b, []string{roleVariable + "=" + roleWrapped}, []string{"-w", fmt.Sprint(workers)}, built.self)
	theirs := bare(b)
	for _, s := range []*server{ours, theirs} { // heaps grow to their size
		generate(b, s.addr, runTime/2)
	}
	var ratios, rates, bareRates []float64
	var p99s, bareP99s []time.Duration
	b.ResetTimer()
	for range b.N {
		for i := range pairs {
			var mine, other result
			if i%2 == 0 {
				mine, other = generate(b, ours.addr, runTime), generate(b, theirs.addr, runTime)
			} else {
				other, mine = generate(b, theirs.addr, runTime), generate(b, ours.addr, runTime)
			}
			ratios = append(ratios, mine.perSecond/other.perSecond)
			rates, bareRates = append(rates, mine.perSecond), append(bareRates, other.perSecond)
			p99s, bareP99s = append(p99s, mine.p99), append(bareP99s, other.p99)
		}
	}
	ratio := median(ratios)
	b.ReportMetric(ratio, "ratio")
	say("requests per second, "+what, fmt.Sprintf("%.3f", ratio), fmt.Sprintf(">= %.2f", target), ratio >= target)
	say(fmt.Sprintf("  %d pairs of runs, ratios from %.3f to %.3f", len(ratios), slices.Min(ratios), slices.Max(ratios)), "", "", true)
	say("  requests per second", fmt.Sprintf("%.0f", median(rates)), "", true)
	say("  requests per second, bare", fmt.Sprintf("%.0f", median(bareRates)), "", true)
	say("  p99", milliseconds(median(p99s)), "", true)
	say("  p99, bare", milliseconds(median(bareP99s)), "", true)
}
