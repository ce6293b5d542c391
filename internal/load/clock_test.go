package load

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pipeServer serves over net.Pipe with the clock of a synctest bubble. It answers at once and closes a connection after
// life, when it is idle.
type pipeServer struct {
	life time.Duration
	wg   sync.WaitGroup
}

func (p *pipeServer) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	p.wg.Go(func() {
		timer := time.AfterFunc(p.life, func() { server.Close() })
		defer timer.Stop()
		(&badServer{decide: func(int, int) action { return serve }}).conn(server, 0)
	})
	return client, nil
}

// With a round trip of 100 ms, a connection that the server closes 200 ms after it was opened is seen to be closed 50 ms
// later; what was decided up to then and arrives after the close is lost.
func TestRun_DistanceDecidesTheRace(t *testing.T) {
	const rtt = 100 * time.Millisecond
	tests := []struct {
		name  string
		life  time.Duration // of a connection, from when the handshake reaches the server
		drops int
	}{
		// One client, a send each 500 ms: decided at 0 (the schedule shifts all alike), handshake arrives at 50 ms, bytes at 150 ms, response seen
		// at 200 ms. The next send is decided at 500 ms and arrives at 550 ms. It knows what happened until 450 ms.
		{"closed long before the decision", 200 * time.Millisecond, 0},                       // at 250
		{"closed just before it could be known", 400*time.Millisecond - time.Millisecond, 0}, // at 449
		{"closed just too late to be known", 400*time.Millisecond + time.Millisecond, 1},     // at 451
		{"closed while the request is on its way", 499 * time.Millisecond, 1},                // at 549
		{"closed after the answer", 501 * time.Millisecond, 0},                               // at 551
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &pipeServer{life: tt.life}
				c := Config{
					Address: "pipe", Dial: p.dial, RTT: rtt, Timeout: time.Minute, Duration: time.Second,
					Streams: []Stream{{Connections: 1, Rate: 2, Echo: true}},
				}
				c, err := c.withDefaults()
				if err != nil {
					t.Fatal(err)
				}
				s := newSlot(&c, &c.Streams[0], 0, time.Now())
				for k := range 2 {
					at := s.start.Add(time.Duration(k) * 500 * time.Millisecond)
					s.sleepUntil(t.Context(), at)
					s.exchange(t.Context(), compose(s.stream, "pipe", s.rng, 0, k, at))
				}
				s.retire()
				p.wg.Wait()
				rep := newReport(&c, s.start, 0)
				rep.add(&s.tally)
				rep.finish()
				if rep.Requests != 2 || rep.Drops.Total() != tt.drops || rep.OK != 2-tt.drops {
					t.Errorf("\n%s", &rep)
				}
				if first := rep.Samples[0]; first.Latency != 2*rtt {
					t.Errorf("the first request took %v, want two round trips: handshake and exchange", first.Latency)
				}
				if tt.drops == 0 && tt.life > 500*time.Millisecond && rep.Samples[1].Latency != rtt {
					t.Errorf("the second request took %v, want one round trip", rep.Samples[1].Latency)
				}
			})
		})
	}
}

// A server that stalls once must show in the latency of everything that should have been sent meanwhile.
func TestRun_LatencyCountsFromTheIntendedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var once sync.Once
		var wg sync.WaitGroup
		c := Config{
			Address: "pipe", Timeout: time.Minute, Duration: 2 * time.Second,
			Streams: []Stream{{Connections: 1, Rate: 100, Echo: true}},
			Dial: func(context.Context, string, string) (net.Conn, error) {
				client, server := net.Pipe()
				wg.Go(func() {
					(&badServer{decide: func(_, request int) action {
						if request == 20 {
							once.Do(func() { time.Sleep(time.Second) }) //nolint:forbidigo // the bubble's clock
						}
						return serve
					}}).conn(server, 0)
				})
				return client, nil
			},
		}
		r, err := Run(t.Context(), c)
		wg.Wait()
		if err != nil || r.Requests != 200 || r.OK != 200 {
			t.Fatalf("%v\n%s", err, &r)
		}
		late := 0
		for _, s := range r.Samples {
			if s.Latency > 100*time.Millisecond {
				late++
			}
		}
		if late < 85 || late > 95 || r.Latency.Max < 990*time.Millisecond {
			t.Errorf("%d requests were late, want about 90\n%s", late, &r)
		}
		if r.Lag.Max != 0 || r.Fault() != "" {
			t.Errorf("the generator blames itself: %s", r.Fault())
		}
	})
}

func TestRun_SlowServerLeavesSendsUnsent(t *testing.T) {
	srv := newBadServer(t, func(int, int) action { return stall })
	c := quick(srv.l.Addr().String(), Stream{Connections: 2, Rate: 20})
	c.Timeout = 400 * time.Millisecond
	r := run(t, c)
	if r.Unsent == 0 || r.Requests+r.Unsent != 20 || r.Drops[Timeout] != r.Requests {
		t.Errorf("\n%s", &r)
	}
}

func TestRun_StopWaitsForWhatIsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		c := Config{
			Address: "pipe", Stop: stop, Timeout: time.Minute, Duration: time.Hour,
			Streams: []Stream{{Connections: 1, Rate: 1, Echo: true}},
			Dial: func(context.Context, string, string) (net.Conn, error) {
				client, server := net.Pipe()
				wg.Go(func() {
					(&badServer{decide: func(_, request int) action {
						time.Sleep(10 * time.Second) //nolint:forbidigo // the bubble's clock
						return serve
					}}).conn(server, 0)
				})
				return client, nil
			},
		}
		time.AfterFunc(45*time.Second, func() { close(stop) })
		r, err := Run(t.Context(), c)
		wg.Wait()
		if err != nil || r.Requests != r.OK || r.OK < 4 || r.OK > 5 || r.Unsent < 38 || r.Unsent > 41 || r.Took < 45*time.Second || r.Took > time.Minute {
			t.Errorf("%v\n%s", err, &r)
		}
	})
}

func TestRun_EndsWithItsContext(t *testing.T) {
	srv := newBadServer(t, func(int, int) action { return stall })
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	c := quick(srv.l.Addr().String(), post())
	c.Streams = append(c.Streams, Stream{Kind: Silent, Silence: time.Minute, Connections: 4, Rate: 100}, Stream{Kind: NewConn, Connections: 4, Rate: 1})
	c.Duration, c.Timeout, c.MaxRequests = time.Hour, time.Hour, 1<<31
	time.AfterFunc(100*time.Millisecond, func() { cancel(enough) })
	begin := time.Now()
	r, err := Run(ctx, c)
	if !errors.Is(err, enough) || time.Since(begin) > 5*time.Second {
		t.Errorf("got %v after %v", err, time.Since(begin))
	}
	if r.Drops.Total() != 0 || r.Canceled == 0 || r.Requests != r.Canceled {
		t.Errorf("\n%s", &r)
	}
}
