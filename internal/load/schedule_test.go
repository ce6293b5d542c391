package load

import (
	"context"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Between two sends of one connection lies what a send takes by itself, each lies within the run, and together they come
// evenly.
func TestSchedule(t *testing.T) {
	const d = 100 * time.Second
	tests := []struct {
		name   string
		stream Stream
		rtt    time.Duration
		least  time.Duration // between two sends
	}{
		{"keep-alive", Stream{Connections: 16, Rate: 120}, 0, 66 * time.Millisecond},
		{"silent, with all the room that verify gives it", Stream{Kind: Silent, Silence: 300 * time.Millisecond, Connections: 12, Rate: 12}, 0, 500 * time.Millisecond},
		{"silent, with little room", Stream{Kind: Silent, Silence: 300 * time.Millisecond, Connections: 4, Rate: 10}, 10 * time.Millisecond, 320 * time.Millisecond},
		{"slow answers", Stream{Connections: 8, Rate: 10, Takes: 700 * time.Millisecond}, 0, 700 * time.Millisecond},
		{"slow answers far away, and a connection to open", Stream{Connections: 8, Rate: 10, Takes: 600 * time.Millisecond}, 50 * time.Millisecond, 700 * time.Millisecond},
		{"no room at all", Stream{Kind: Silent, Silence: time.Second, Connections: 4, Rate: 10}, 0, 400 * time.Millisecond},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := tt.stream
			if err := s.complete(); err != nil {
				t.Fatal(err)
			}
			period := s.period()
			var within [4]int // how many sends come in each quarter of a period
			total := 0
			for c := range 500 {
				plan := newSchedule(&s, rand.New(rand.NewPCG(1, uint64(c))), d, tt.rtt)
				if plan.n != s.sends(d) {
					t.Fatalf("%d sends, want %d", plan.n, s.sends(d))
				}
				last := time.Duration(-1)
				for k := range plan.n {
					at := plan.at(k)
					if at < 0 || at >= d+time.Nanosecond {
						t.Fatalf("send %d of %d is intended at %v of %v", k, plan.n, at, d)
					}
					if last >= 0 && at-last < tt.least {
						t.Fatalf("sends %d and %d of a connection are %v apart, want %v", k-1, k, at-last, tt.least)
					}
					last = at
					if k > 1 && k < plan.n-2 {
						within[4*(at%period)/period]++
						total++
					}
				}
			}
			for i, n := range within {
				if share := float64(n) / float64(total); share < 0.22 || share > 0.28 {
					t.Errorf("quarter %d of a period has %.2f of the sends: %v", i, share, within)
				}
			}
		})
	}
}

// clockServer answers over net.Pipe, with the clock of a synctest bubble, each request as late as takes says.
type clockServer struct {
	takes func(request int) time.Duration
	seen  atomic.Int64
	wg    sync.WaitGroup
}

func (s *clockServer) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	s.wg.Go(func() {
		(&badServer{decide: func(_, request int) action {
			if request >= 0 {
				time.Sleep(s.takes(int(s.seen.Add(1)))) //nolint:forbidigo // the bubble's clock
			}
			return serve
		}}).conn(server, 0)
	})
	return client, nil
}

// What the report says of the latency is what the server took, to the nanosecond where the clock is exact: whatever kind
// the clients are of and however far away.
func TestRun_LatencyIsTheServers(t *testing.T) {
	const usual, rare, worst = 10 * time.Millisecond, 80 * time.Millisecond, 450 * time.Millisecond
	streams := map[string]Stream{
		"keep-alive":         {Connections: 20, Rate: 20},
		"keep-alive, busy":   {Connections: 40, Rate: 80},
		"new":                {Kind: NewConn, Connections: 20, Rate: 20},
		"silent":             {Kind: Silent, Silence: 300 * time.Millisecond, Connections: 10, Rate: 10},
		"silent, tight":      {Kind: Silent, Silence: 300 * time.Millisecond, Takes: worst, Connections: 20, Rate: 20},
		"slow":               {Connections: 20, Rate: 20, Takes: worst},
		"split in the sends": {Connections: 20, Rate: 20, Split: 1, Method: "POST", Body: 2000},
	}
	for name, stream := range streams {
		for _, rtt := range []time.Duration{0, 40 * time.Millisecond} {
			t.Run(name+"/rtt "+rtt.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					srv := &clockServer{takes: func(n int) time.Duration {
						switch {
						case n == 500:
							return worst
						case n%40 == 0:
							return rare
						}
						return usual
					}}
					r, err := Run(t.Context(), Config{
						Address: "pipe", Dial: srv.dial, RTT: rtt, Timeout: time.Minute, Duration: 100 * time.Second, Streams: []Stream{stream},
					})
					srv.wg.Wait()
					if err != nil || r.OK != r.Requests || r.Unsent > 0 {
						t.Fatalf("%v\n%s", err, &r)
					}
					// Each request costs a round trip; so does connecting, which but for kept-alive connections comes each time.
					network, slack := rtt, time.Duration(0)
					if stream.Kind == NewConn || stream.Kind == Silent {
						network *= 2
					}
					if stream.Split > 0 {
						slack = 2 * maxSplitGap
					}
					for _, q := range []struct {
						name      string
						got, want time.Duration
					}{{"p50", r.Latency.P50, usual}, {"p99", r.Latency.P99, rare}, {"max", r.Latency.Max, worst}} {
						if over := q.got - q.want - network; over < 0 || over > slack {
							t.Errorf("%s %v, want %v and %v of network\n%s", q.name, q.got, q.want, network, &r)
						}
					}
					if r.Lag.Max != 0 || r.Fault() != "" {
						t.Errorf("the generator blames itself: late by %v, %q", r.Lag.Max, r.Fault())
					}
				})
			})
		}
	}
}

// What the generator is late by is its own: it is none of the server's latency, and shows as what it is.
func TestRun_OwnLatenessIsNotTheServers(t *testing.T) {
	const takes, late = 10 * time.Millisecond, 30 * time.Millisecond
	tests := []struct {
		name    string
		stream  Stream
		late    time.Duration // after each answer
		lag     time.Duration // what the 99th percentile must reach
		latency time.Duration // what no request may exceed
	}{
		{"now and then", Stream{Connections: 1, Rate: 5}, late, late, takes},
		{"longer than the sends are apart", Stream{Connections: 1, Rate: 40}, late, time.Second, takes},
		{"silent clients on too few connections", Stream{Kind: Silent, Silence: 300 * time.Millisecond, Takes: takes, Connections: 1, Rate: 5}, 0, time.Second, takes},
		{"slow answers on too few connections", Stream{Connections: 1, Rate: 150, Takes: takes}, 0, time.Second, takes},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := &clockServer{takes: func(int) time.Duration { return takes }}
				r, err := Run(t.Context(), Config{
					Address: "pipe", Dial: srv.dial, Timeout: time.Minute, Duration: 20 * time.Second, Streams: []Stream{tt.stream},
					Events: func(e Event) {
						if e.Took > tt.latency {
							t.Errorf("told of %v", e.Took)
						}
						time.Sleep(tt.late) //nolint:forbidigo // the bubble's clock
					},
				})
				srv.wg.Wait()
				if err != nil || r.OK != r.Requests || r.OK == 0 {
					t.Fatalf("%v\n%s", err, &r)
				}
				if r.Latency.P50 != takes || r.Latency.Max > tt.latency {
					t.Errorf("latency %+v, want at most %v\n%s", r.Latency, tt.latency, &r)
				}
				if r.Lag.P99 < tt.lag || !strings.Contains(r.Fault(), "fell behind") {
					t.Errorf("late by %+v, want %v: %q", r.Lag, tt.lag, r.Fault())
				}
			})
		})
	}
}

// With a real server, a real clock and a generator that is late by itself, no answer is reported to have come sooner than it
// can have: what is taken out of the latency is no more than what was ours.
func TestRun_LatencyIsNoLessThanTheServers(t *testing.T) {
	const takes, rtt = 50 * time.Millisecond, 20 * time.Millisecond
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv, served := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-time.After(takes) })}, make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	defer func() { srv.Close(); <-served }()
	least := map[string]time.Duration{"keep": takes + rtt, "new": takes + 2*rtt, "silent": takes + 2*rtt}
	var told, early atomic.Int64
	r := run(t, Config{
		Address: l.Addr().String(), Duration: 2 * time.Second, RTT: rtt, Seed: 5, LagLimit: time.Minute,
		Streams: []Stream{
			{Name: "keep", Connections: 8, Rate: 80, Takes: takes},
			{Name: "new", Kind: NewConn, Connections: 8, Rate: 40, Takes: takes},
			{Name: "silent", Kind: Silent, Silence: 50 * time.Millisecond, Connections: 8, Rate: 20, Takes: takes},
		},
		Events: func(e Event) {
			if e.Kind == Answered && e.Took < least[e.Stream] {
				early.Add(1)
			}
			if told.Add(1)%5 == 0 {
				<-time.After(20 * time.Millisecond) // now and then the generator is busy with itself
			}
		},
	})
	if r.OK == 0 || r.OK != r.Requests || early.Load() > 0 {
		t.Errorf("%d of %d answers came sooner than they can have\n%s", early.Load(), r.OK, &r)
	}
	if r.Lag.Max == 0 {
		t.Error("the generator was not late")
	}
}

func TestStream_Busy(t *testing.T) {
	const takes, rtt = 30 * time.Millisecond, 100 * time.Millisecond
	tests := []struct {
		stream Stream
		want   time.Duration
	}{
		{Stream{Takes: takes}, takes + rtt},
		{Stream{Kind: NewConn, Takes: takes}, takes + 2*rtt},
		{Stream{Kind: Silent, Takes: takes, Silence: time.Second}, takes + 2*rtt + time.Second},
		{Stream{Takes: takes, Silence: time.Second, Split: 0.1}, takes + rtt + 2*maxSplitGap},
	}
	for _, tt := range tests {
		s := tt.stream
		s.Connections, s.Rate = 1, 1
		if err := s.complete(); err != nil {
			t.Fatal(err)
		}
		if got := s.Busy(rtt); got != tt.want {
			t.Errorf("%+v is busy for %v, want %v", tt.stream, got, tt.want)
		}
	}
}
