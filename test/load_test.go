//go:build linux

package test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"gapless/internal/load"
)

// The load under which upgrades must not be noticed.
const (
	keepAliveConnections = 64
	newConnectionClients = 8
)

// requestsPerSecond is what two cores serve with ease; the race detector makes everything slow.
func requestsPerSecond() float64 {
	if raceEnabled {
		return 250
	}
	return 1000
}

// slower stretches a time for builds with the race detector.
func slower(d time.Duration) time.Duration {
	if raceEnabled {
		return 2 * d
	}
	return d
}

// plan is a load during which something happens.
type plan struct {
	addr    string
	streams []load.Stream
	rtt     time.Duration
	every   time.Duration // the pause before each act
	tail    time.Duration // of load after the last
}

// reports are what the streams of a plan saw, in their order.
type reports []load.Report

// postStreams is a mix of kept-alive POSTs and of connections that carry one request.
func postStreams(path string, rate float64) []load.Stream {
	return []load.Stream{
		{Kind: load.KeepAlive, Connections: keepAliveConnections, Rate: rate * 0.9, Method: http.MethodPost, Path: path, Body: 200, Echo: path == "/echo"},
		{Kind: load.NewConn, Connections: newConnectionClients, Rate: rate * 0.1, Method: http.MethodPost, Path: path, Body: 200, Echo: path == "/echo"},
	}
}

// lagLimit is how late the generator may be. What it counts as lost does not depend on that; it only has to be a load.
func lagLimit() time.Duration { return slower(250 * time.Millisecond) }

// loadLimit bounds a load whose acts do not come to an end.
const loadLimit = 2 * time.Minute

// under runs n acts under load, one after the other, and returns what the load saw when all of them were over.
func (p plan) under(t testing.TB, n int, act func(i int)) reports {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	rs, errs := make(reports, len(p.streams)), make([]error, len(p.streams))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for i, s := range p.streams {
		wg.Go(func() {
			rs[i], errs[i] = load.Run(ctx, load.Config{
				Address: p.addr, Streams: []load.Stream{s}, RTT: p.rtt, Duration: loadLimit, Timeout: 20 * time.Second, LagLimit: lagLimit(),
				Seed: uint64(i),
			})
		})
	}
	for i := range n {
		pause(p.every)
		act(i)
	}
	pause(p.tail)
	if ctx.Err() != nil {
		t.Fatal("the test was ended")
	}
	stop()
	wg.Wait()
	for i, err := range errs {
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("the load was over before all was done under it: %v\n%s", err, &rs[i])
		}
	}
	if testing.Verbose() {
		t.Logf("\n%s", rs)
	}
	return rs
}

func (rs reports) String() string {
	var texts []string
	for i := range rs {
		texts = append(texts, rs[i].String())
	}
	return strings.Join(texts, "\n")
}

// lost is how many requests were lost.
func (rs reports) lost() int {
	n := 0
	for _, r := range rs {
		n += r.Drops.Total()
	}
	return n
}

// closed is how many kept-alive connections the server has closed, announced or not.
func (rs reports) closed(p plan) int {
	n := 0
	for i, r := range rs {
		if p.streams[i].Kind == load.KeepAlive {
			n += max(0, r.Connects-p.streams[i].Connections)
		}
		n += r.ClosedIdle
	}
	return n
}

// noneLost demands that it was a load, and that every request that was not cut short by its end was answered.
func (rs reports) noneLost(t testing.TB) {
	t.Helper()
	for i := range rs {
		r := &rs[i]
		if f := r.Fault(); f != "" {
			t.Fatalf("the load proves nothing: %s\n%s", f, rs)
		}
		if r.Drops.Total() != 0 || r.OK == 0 || r.OK+r.Canceled != r.Requests {
			t.Fatalf("%d of %d requests lost\n%s", r.Drops.Total(), r.Requests, rs)
		}
	}
}

// untouched demands in addition that no connection was closed.
func (rs reports) untouched(t testing.TB, p plan) {
	t.Helper()
	rs.noneLost(t)
	if n := rs.closed(p); n != 0 {
		t.Fatalf("%d connections closed by the server\n%s", n, rs)
	}
}

// answered demands answers of n generations.
func (rs reports) answered(t testing.TB, n int) {
	t.Helper()
	for i := range rs {
		if got := len(rs[i].Generations); got != n {
			t.Errorf("%d generations answered, want %d\n%s", got, n, &rs[i])
		}
	}
}

// Kept-alive connections and new ones, near and far, see nothing of upgrades: not a request lost, not a connection closed.
func TestUpgrade_UnderLoadLosesNothing(t *testing.T) {
	for _, tt := range []struct {
		name string
		rtt  time.Duration
	}{{"near", 0}, {"20 ms away", 20 * time.Millisecond}} {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, options{flags: []string{"-w", "4"}})
			p := plan{addr: s.addr, streams: postStreams("/echo", requestsPerSecond()), rtt: tt.rtt, every: slower(700 * time.Millisecond), tail: slower(time.Second)}
			n := counted(4, 10)
			r := p.under(t, n, func(i int) { s.upgrade(i + 2) })
			r.untouched(t, p)
			r.answered(t, n+1)
			s.settled(n+1, 4)
			s.stop()
		})
	}
}

// Whatever the way in which clients send, and however fast upgrades follow each other.
func TestUpgrade_AllKindsOfSendsAreUntouched(t *testing.T) {
	s := start(t, options{flags: []string{"-w", "3"}})
	rate := requestsPerSecond() / 5
	p := plan{addr: s.addr, rtt: 20 * time.Millisecond, every: slower(150 * time.Millisecond), tail: time.Second, streams: []load.Stream{
		{Name: "get", Connections: 60, Rate: rate},
		{Name: "chunked", Connections: 40, Rate: rate, Method: http.MethodPost, Path: "/echo", Body: 3000, Chunked: 1, Echo: true},
		{Name: "in pieces", Connections: 60, Rate: rate, Method: http.MethodPost, Path: "/echo", Body: 500, Split: 1, Echo: true},
		{Name: "pipelined", Connections: 40, Rate: rate / 3, Method: http.MethodPost, Path: "/echo", Body: 100, Pipeline: 1, Echo: true},
		{Name: "silent", Kind: load.Silent, Silence: 200 * time.Millisecond, Connections: 40, Rate: rate / 2},
	}}
	n := counted(10, 50)
	r := p.under(t, n, func(i int) { s.upgrade(i + 2) })
	r.untouched(t, p)
	s.settled(n+1, 3)
	s.stop()
}

// With a single worker, which may be seen as ready by the kernel's evidence before it has said that it takes
// connections, there is nobody else to take them.
func TestUpgrade_SingleWorkerTakesConnections(t *testing.T) {
	s := start(t, options{flags: []string{"-w", "1"}})
	p := plan{addr: s.addr, streams: postStreams("/echo", requestsPerSecond()/2), every: 100 * time.Millisecond, tail: time.Second}
	n := counted(15, 100)
	r := p.under(t, n, func(i int) { s.upgrade(i + 2) })
	r.untouched(t, p)
	s.settled(n+1, 1)
	s.stop()
}
