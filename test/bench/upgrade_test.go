//go:build linux

package bench

import (
	"net/http"
	"strconv"
	"testing"
	"time"

	"gapless/internal/app"
)

// BenchmarkUpgrade measures from USR2 to the first response of the new generation, as a client sees it that opens a
// connection for each request, and what the managers occupy after that many upgrades.
func BenchmarkUpgrade(b *testing.B) {
	const upgrades, workers = 25, 4
	s := run(b, nil, []string{"-w", strconv.Itoa(workers)})
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var first, gone []time.Duration
	b.ResetTimer()
	for range b.N {
		for i := range upgrades {
			generation := i + 2
			s.settle(generation-1, workers)
			at := s.upgrade()
			first = append(first, answered(b, client, s.addr, generation).Sub(at))
			s.settle(generation, workers)
			gone = append(gone, time.Since(at))
		}
	}
	p50, p99 := quantile(first, 0.5), quantile(first, 0.99)
	b.ReportMetric(float64(p50)/1e6, "p50-ms")
	b.ReportMetric(float64(p99)/1e6, "p99-ms")
	say("USR2 to first response of the new generation, 4 workers, p50 of 25", milliseconds(p50), "<= 50 ms", p50 <= 50*time.Millisecond)
	say("  p99 (the slowest)", milliseconds(p99), "", true)
	say("  until nothing of the old generation is left, p50", milliseconds(quantile(gone, 0.5)), "", true)

	t := s.settle(upgrades*b.N+1, workers)
	bytes := pss(b, t.managers...)
	b.ReportMetric(float64(bytes)/(1<<20), "managers-MiB")
	say("memory of parent and master after 25 upgrades, PSS", mebibytes(bytes), "<= 20 MiB", bytes <= 20<<20)
}

// answered returns when the generation answers. It asks twice a millisecond: a client that never pauses would take the
// cores that the upgrade needs.
func answered(b *testing.B, client *http.Client, addr string, generation int) time.Time {
	b.Helper()
	tick := time.NewTicker(500 * time.Microsecond)
	defer tick.Stop()
	for limit := time.Now().Add(patience); time.Now().Before(limit); <-tick.C {
		resp, err := client.Get("http://" + addr + "/healthz")
		if err != nil {
			b.Fatalf("a request during an upgrade: %v", err)
		}
		_ = resp.Body.Close()
		if resp.Header.Get(app.HeaderGeneration) == strconv.Itoa(generation) {
			return time.Now()
		}
	}
	b.Fatalf("generation %d does not answer within %v", generation, patience)
	return time.Time{}
}
