//go:build linux

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gapless/internal/procfs"
)

// Each pair of runs gives one ratio; their median is the figure. The order changes with each pair, for the sake of
// whatever a run leaves behind. Many short pairs say more than few long ones: what else a machine does comes and goes by
// the second, and the two runs of a pair should have the same of it. The servers are started anew after some pairs: two
// processes of one program differ by up to 5 % for as long as they live, by where their memory happens to lie.
const (
	starts      = 7
	pairs       = 5 // for each start
	runTime     = time.Second
	connections = 64
)

// BenchmarkThroughput_FourWorkers compares four workers of the wrapped server with the same handler in one bare process.
func BenchmarkThroughput_FourWorkers(b *testing.B) {
	versus(b, "4 workers / one bare net/http process", "gapless, bare", 0.95, wrapped(4), bareIn())
}

// BenchmarkThroughput_FourProcesses is how much of that is owed to there being four processes, without gapless: they
// share one address by SO_REUSEPORT, and run one thread at a time as gapless's workers do.
func BenchmarkThroughput_FourProcesses(b *testing.B) {
	versus(b, "4 bare net/http processes, no gapless / one", "four, one", 0, bareIn(roleVariable+"="+roleBareFour, "GOMAXPROCS=1"), bareIn())
}

// BenchmarkThroughput_Wrapper compares one worker with the bare process: what gapless.Serve costs a request.
func BenchmarkThroughput_Wrapper(b *testing.B) {
	versus(b, "1 worker through gapless.Serve / bare net/http", "gapless, bare", 0.98, wrapped(1), bareIn())
}

// BenchmarkThroughput_Same compares the bare process with itself: what a ratio of this method is worth.
func BenchmarkThroughput_Same(b *testing.B) {
	versus(b, "bare net/http / the same again", "one, the other", 0, bareIn(), bareIn())
}

// starter starts a server.
type starter func(testing.TB) *server

func bareIn(env ...string) starter { return func(b testing.TB) *server { return bare(b, env...) } }

func wrapped(workers int) starter {
	return func(b testing.TB) *server {
		return run(b, []string{roleVariable + "=" + roleWrapped}, []string{"-w", fmt.Sprint(workers)}, built.self)
	}
}

// versus compares the first server with the second; who names them. A target of 0 is none.
func versus(b *testing.B, what, who string, target float64, ours, theirs starter) {
	var mine, other, ratios sample
	b.ResetTimer()
	for range b.N {
		for start := range starts {
			compare(b, start%2 == 0, ours, theirs, &mine, &other)
		}
	}
	for i, rate := range mine.rates {
		ratios.rates = append(ratios.rates, rate/other.rates[i])
		ratios.costs = append(ratios.costs, mine.costs[i]/other.costs[i])
		ratios.tails = append(ratios.tails, mine.p99s[i].Seconds()/other.p99s[i].Seconds())
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
	say("  p99, ratio", fmt.Sprintf("%.3f", median(ratios.tails)), "", true)
	say("  CPU time of all its processes for each request, ratio", fmt.Sprintf("%.3f", median(ratios.costs)), "", true)
}

// compare starts two servers, ours first or not, and measures pairs of runs.
func compare(b *testing.B, first bool, ours, theirs starter, mine, other *sample) {
	b.Helper()
	var our, their *server
	if first {
		our, their = ours(b), theirs(b)
	} else {
		their, our = theirs(b), ours(b)
	}
	defer our.stop()
	defer their.stop()
	for _, s := range []*server{our, their} { // heaps grow to their size
		generate(b, s.addr, runTime)
	}
	for i := range pairs {
		if (i%2 == 0) == first {
			mine.measure(b, our)
			other.measure(b, their)
		} else {
			other.measure(b, their)
			mine.measure(b, our)
		}
	}
}

// sample is what the runs of one server have shown.
type sample struct {
	rates []float64 // requests per second
	p99s  []time.Duration
	tails []float64 // ratios of p99s
	costs []float64 // nanoseconds of CPU time per request; unlike rates they hardly suffer from what else the machine does
}

func (m *sample) measure(b *testing.B, s *server) {
	b.Helper()
	before := s.cpu()
	r := generate(b, s.addr, runTime)
	m.rates = append(m.rates, r.perSecond)
	m.p99s = append(m.p99s, r.p99)
	m.costs = append(m.costs, float64(s.cpu()-before)/r.count)
}

// cpu is the CPU time that the threads of a server have had, in nanoseconds.
func (s *server) cpu() (sum int64) {
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
		threads, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/schedstat")
		if err != nil {
			s.b.Fatal(err)
		}
		for _, file := range threads {
			text, err := os.ReadFile(file)
			if err != nil {
				continue // the thread has ended
			}
			n, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
			if err != nil {
				s.b.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}
