//go:build linux

package test

import (
	"net/http"
	"testing"
	"time"

	"gapless/internal/load"
	"gapless/internal/load/loadtest"
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

// plan is a load during which something happens at equal intervals.
type plan struct {
	addr    string
	streams []load.Stream
	rtt     time.Duration
	every   time.Duration
	tail    time.Duration // of load after the last
	blind   bool
}

// postStreams is a mix of kept-alive POSTs and of connections that carry one request.
func postStreams(path string, rate float64) []load.Stream {
	return []load.Stream{
		{Kind: load.KeepAlive, Connections: keepAliveConnections, Rate: rate * 0.9, Method: http.MethodPost, Path: path, Body: 200, Echo: path == "/echo"},
		{Kind: load.NewConn, Connections: newConnectionClients, Rate: rate * 0.1, Method: http.MethodPost, Path: path, Body: 200, Echo: path == "/echo"},
	}
}

// lagLimit is how late the generator may be. The race detector slows all of it down.
func lagLimit() time.Duration {
	if raceEnabled {
		return 300 * time.Millisecond
	}
	return 50 * time.Millisecond
}

// duration is that of the load for n acts.
func (p plan) duration(n int) time.Duration { return time.Duration(n)*p.every + p.tail }

// connects is how many connections it takes if none is ever closed by the server.
func (p plan) connects(n int) int {
	total := 0
	for _, s := range p.streams {
		if s.Kind == load.KeepAlive {
			total += s.Connections
			continue
		}
		period := time.Duration(float64(time.Second) * float64(s.Connections) / s.Rate)
		total += s.Connections * int(p.duration(n)/period)
	}
	return total
}

// under runs n acts under load, one every interval, and returns what the load saw. All of them must be over before the
// load is.
func (p plan) under(t testing.TB, n int, act func(i int)) load.Report {
	t.Helper()
	c := load.Config{
		Address: p.addr, Streams: p.streams, RTT: p.rtt, Duration: p.duration(n), Timeout: 20 * time.Second,
		LagLimit: lagLimit(), Blind: p.blind,
	}
	type outcome struct {
		r   load.Report
		err error
	}
	done := make(chan outcome, 1)
	over := make(chan struct{})
	go func() {
		defer close(over)
		r, err := load.Run(t.Context(), c) // the context ends before cleanups begin
		done <- outcome{r, err}
	}()
	t.Cleanup(func() { <-over })
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	for i := range n {
		<-tick.C
		act(i)
	}
	select {
	case o := <-done:
		t.Fatalf("the load was over before all was done under it: %v\n%s", o.err, &o.r)
	default:
	}
	o := <-done
	if o.err != nil {
		t.Fatalf("%v\n%s", o.err, &o.r)
	}
	if testing.Verbose() {
		t.Logf("\n%s", &o.r)
	}
	return o.r
}

func def[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
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
			loadtest.RequireNoClose(t, r)
			if want := p.connects(n); r.Connects != want {
				t.Errorf("%d connections opened, want %d: some were closed after an announcement\n%s", r.Connects, want, &r)
			}
			if got := len(r.Generations); got != n+1 {
				t.Errorf("%d generations answered, want %d\n%s", got, n+1, &r)
			}
			s.settled(n+1, 4)
			s.stop()
		})
	}
}
