//go:build linux

package bench

import (
	"fmt"
	"strconv"
	"testing"
	"time"
)

// BenchmarkStart compares the start of many workers with that of one, and what the manager needs for each.
func BenchmarkStart(b *testing.B) {
	const many, starts = 64, 5
	var one, all []time.Duration
	var oneBytes, allBytes []int64
	start := func(workers int) (time.Duration, int64) {
		s := run(b, nil, []string{"-w", strconv.Itoa(workers)})
		t := s.settle(1, workers)
		bytes := anonymous(b, t.managers...)
		s.stop()
		return s.started, bytes
	}
	b.ResetTimer()
	for range b.N {
		for range starts {
			d, n := start(1)
			one, oneBytes = append(one, d), append(oneBytes, n)
			d, n = start(many)
			all, allBytes = append(all, d), append(allBytes, n)
		}
	}
	single, parallel := quantile(one, 0.5), quantile(all, 0.5)
	limit := single*3/2 + many*10*time.Millisecond
	b.ReportMetric(float64(single)/1e6, "one-ms")
	b.ReportMetric(float64(parallel)/1e6, "many-ms")
	say("start of one worker until all is ready, p50 of 5", milliseconds(single), "", true)
	say("start of 64 workers until all are ready, p50 of 5", milliseconds(parallel), "<= "+milliseconds(limit), parallel <= limit)
	each := (median(allBytes) - median(oneBytes)) / (many - 1)
	b.ReportMetric(float64(each)/1024, "KiB/worker")
	say("anonymous memory of parent and master for each worker more", fmt.Sprintf("%d KiB", each>>10), "<= 100 KiB", each <= 100<<10)
}
