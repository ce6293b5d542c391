//go:build linux

package bench

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"gapless/internal/pidfd"
)

// BenchmarkIdle has 10,000 idle connections change generation, several times: the time until the last old worker has
// gone, whether all answer after that, and the memory.
func BenchmarkIdle(b *testing.B) {
	const count, workers, moves, limit = 10_000, 4, 5, 500 * time.Millisecond
	s := run(b, nil, []string{"-w", strconv.Itoa(workers)})
	clients := dialAll(b, s.addr, count)
	defer func() {
		for _, c := range clients {
			_ = c.Close()
		}
	}()
	warm := askAll(b, clients)
	t := s.settle(1, workers)
	beforeBytes := pss(b, append(t.workers[1], t.managers...)...)
	var gone, commit, after []time.Duration
	b.ResetTimer()
	for range b.N {
		for range moves {
			generation := len(gone) + 1
			t := s.settle(generation, workers)
			old := watch(b, t.workers[generation])
			at := s.upgrade()
			e := s.await("Upgrade complete")
			for _, p := range old {
				select {
				case <-p.Done():
				case <-time.After(patience):
					b.Fatalf("old worker %d is still there after %v", p.PID(), patience)
				}
			}
			gone = append(gone, time.Since(at))
			commit = append(commit, e.at.Sub(at))
			after = append(after, askAll(b, clients))
		}
	}
	b.StopTimer()

	generation := len(gone) + 1
	t = s.settle(generation, workers)
	took := median(gone)
	b.ReportMetric(float64(took)/1e6, "gone-ms")
	say("10,000 idle connections: USR2 until the last old worker has gone, p50 of 5", milliseconds(took), "<= 500 ms", took <= limit)
	say("  the slowest", milliseconds(slices.Max(gone)), "", true)
	say("  of it, until the new generation is in charge, p50", milliseconds(median(commit)), "", true)
	say("  one request on each connection then, none lost or closed, p50", milliseconds(median(after)), "", true)
	say("  the same before the first upgrade", milliseconds(warm), "", true)
	say("  memory of all processes before, PSS", mebibytes(beforeBytes), "", true)
	say("  memory of all processes after, PSS", mebibytes(pss(b, append(t.workers[generation], t.managers...)...)), "", true)
	say("  the most that the last workers have held together, RSS", mebibytes(peak(b, t.workers[generation])), "", true)
}

// watch follows processes that are not our children.
func watch(b *testing.B, pids []int) []*pidfd.Process {
	b.Helper()
	var ps []*pidfd.Process
	for _, pid := range pids {
		p, err := pidfd.Open(pid)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { p.Close() })
		ps = append(ps, p)
	}
	return ps
}

// inParallel calls do for each number below n, some at a time, and fails if one of them does.
func inParallel(b *testing.B, n int, do func(i int) error) {
	b.Helper()
	const atATime = 64
	var wg sync.WaitGroup
	errs := make([]error, atATime)
	for k := range atATime {
		wg.Go(func() {
			for i := k; i < n; i += atATime {
				if err := do(i); err != nil {
					errs[k] = fmt.Errorf("connection %d: %w", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		b.Fatal(err)
	}
}

func dialAll(b *testing.B, addr string, n int) []net.Conn {
	b.Helper()
	conns := make([]net.Conn, n)
	inParallel(b, n, func(i int) (err error) {
		conns[i], err = net.Dial("tcp", addr)
		return err
	})
	return conns
}

// askAll sends one request on each connection and returns how long all of them took.
func askAll(b *testing.B, conns []net.Conn) time.Duration {
	b.Helper()
	began := time.Now()
	inParallel(b, len(conns), func(i int) error {
		if err := conns[i].SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		return ask(conns[i], bufio.NewReaderSize(conns[i], 512))
	})
	return time.Since(began)
}

// peak is the sum of the largest resident sizes that processes have had, in bytes.
func peak(b *testing.B, pids []int) int64 {
	b.Helper()
	var sum int64
	for _, pid := range pids {
		sum += field(b, pid, "status", "VmHWM:")
	}
	return sum
}
