//go:build linux

package bench

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gapless/internal/procfs"
)

// Each pair of runs gives one ratio; their median is the figure. The order changes with each pair, for the sake of
// whatever a run leaves behind. Many short pairs say more than few long ones: what else a machine does comes and goes by
// the second, and the two runs of a pair should have the same of it.
const (
	pairs       = 25
	runTime     = time.Second
	connections = 64
)

// BenchmarkThroughput_FourWorkers compares four workers of the wrapped server with the same handler in one bare process.
func BenchmarkThroughput_FourWorkers(b *testing.B) {
	compare(b, "4 workers / one bare net/http process", 4, 0.95)
}

// BenchmarkThroughput_FourProcesses is how much of that is owed to there being four processes, without gapless: they
// share one address by SO_REUSEPORT, and run one thread at a time as gapless's workers do.
func BenchmarkThroughput_FourProcesses(b *testing.B) {
	versus(b, "4 bare net/http processes, no gapless / one", "four, one", 0, bare(b, roleVariable+"="+roleBareFour, "GOMAXPROCS=1"), bare(b))
}

// BenchmarkThroughput_Wrapper compares one worker with the bare process: what gapless.Serve costs a request.
func BenchmarkThroughput_Wrapper(b *testing.B) {
	compare(b, "1 worker through gapless.Serve / bare net/http", 1, 0.98)
}

func compare(b *testing.B, what string, workers int, target float64) {
	versus(b, what, "gapless, bare", target, run(b, []string{roleVariable + "=" + roleWrapped}, []string{"-w", fmt.Sprint(workers)}, built.self), bare(b))
}

// versus compares the first server with the second; who names them. A target of 0 is none.
func versus(b *testing.B, what, who string, target float64, ours, theirs *server) {
	for _, s := range []*server{ours, theirs} { // heaps grow to their size
		generate(b, s.addr, runTime)
	}
	var mine, other, ratios sample
	b.ResetTimer()
	for range b.N {
		for i := range pairs {
			if i%2 == 0 {
				mine.measure(b, ours)
				other.measure(b, theirs)
			} else {
				other.measure(b, theirs)
				mine.measure(b, ours)
			}
			last := len(mine.rates) - 1
			ratios.rates = append(ratios.rates, mine.rates[last]/other.rates[last])
			ratios.costs = append(ratios.costs, mine.costs[last]/other.costs[last])
		}
	}
	ratio := median(ratios.rates)
	b.ReportMetric(ratio, "ratio")
	b.ReportMetric(median(ratios.costs), "CPU-ratio")
	wanted := ""
	if target > 0 {
		wanted = fmt.Sprintf(">= %.2f", target)
	}
	say("requests per second, "+what, fmt.Sprintf("%.3f", ratio), wanted, ratio >= target)
	say(fmt.Sprintf("  %d pairs of runs, ratios from %.3f to %.3f", len(ratios.rates), slices.Min(ratios.rates), slices.Max(ratios.rates)), "", "", true)
	say("  requests per second: "+who, fmt.Sprintf("%.0f, %.0f", median(mine.rates), median(other.rates)), "", true)
	say("  p99: "+who, milliseconds(median(mine.p99s))+", "+milliseconds(median(other.p99s)), "", true)
	say("  CPU time of all its processes for each request, ratio", fmt.Sprintf("%.3f", median(ratios.costs)), "", true)
}

// sample is what the runs of one server have shown.
type sample struct {
	rates []float64 // requests per second
	p99s  []time.Duration
	costs []float64 // clock ticks per request; unlike rates they hardly suffer from what else the machine does
}

func (m *sample) measure(b *testing.B, s *server) {
	b.Helper()
	before := s.ticks()
	r := generate(b, s.addr, runTime)
	m.rates = append(m.rates, r.perSecond)
	m.p99s = append(m.p99s, r.p99)
	m.costs = append(m.costs, float64(s.ticks()-before)/r.count)
}

// ticks is the CPU time that the processes of a server have had.
func (s *server) ticks() (sum int64) {
	s.b.Helper()
	pids := []int{s.cmd.Process.Pid}
	ps, err := procfs.Descendants(s.cmd.Process.Pid)
	if err != nil {
		s.b.Fatal(err)
	}
	for _, p := range ps {
		pids = append(pids, p.PID)
	}
	for _, pid := range pids {
		text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			s.b.Fatal(err)
		}
		const user, system = 11, 12 // fields after the command
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		for _, f := range []string{fields[user], fields[system]} {
			n, err := strconv.ParseInt(f, 10, 64)
			if err != nil {
				s.b.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}
