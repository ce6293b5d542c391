package load

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// quick is a second's load of one stream.
func quick(addr string, s Stream) Config {
	return Config{Address: addr, Streams: []Stream{s}, Duration: time.Second, Timeout: 5 * time.Second, Seed: 1, LagLimit: time.Second}
}

func post() Stream {
	return Stream{Connections: 8, Rate: 400, Method: http.MethodPost, Body: 200, Echo: true}
}

func run(t *testing.T, c Config) Report {
	t.Helper()
	r, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if sum := r.OK + r.Drops.Total() + r.Canceled + r.Local + r.Crossed; sum != r.Requests {
		t.Errorf("%d requests, but %d outcomes", r.Requests, sum)
	}
	if t.Failed() || testing.Verbose() {
		t.Logf("\n%s", &r)
	}
	return r
}

// each misdeed on every seventh request must be counted exactly, in its class and in no other.
func TestRun_CountsWhatABadServerDoes(t *testing.T) {
	tests := []struct {
		name  string
		act   action
		class Class
	}{
		{"reset in flight", reset, Reset},
		{"close in flight", hangUp, EOF},
		{"cut body", cutBody, Cut},
		{"cut head", cutHead, Cut},
		{"stall", stall, Timeout},
		{"wrong body", wrongBody, Body},
		{"another request's answer", wrongID, Body},
		{"wrong status", wrongStatus, Status},
		{"announced close", closeAnnounced, ""},
	}
	for _, tt := range tests {
		for _, kind := range []Kind{KeepAlive, NewConn, Silent} {
			t.Run(tt.name+"/"+string(kind), func(t *testing.T) {
				t.Parallel()
				var mu sync.Mutex
				seen := 0
				srv := newBadServer(t, func(_, request int) action {
					mu.Lock()
					defer mu.Unlock()
					if request >= 0 {
						if seen++; seen%7 == 0 {
							return tt.act
						}
					}
					return serve
				})
				s := post()
				s.Kind, s.Silence = kind, 5*time.Millisecond
				c := quick(srv.l.Addr().String(), s)
				c.Duration = 400 * time.Millisecond
				if tt.act == stall {
					c.Timeout, c.Streams[0].Connections = 300*time.Millisecond, 40
				}
				r := run(t, c)
				want := srv.count(tt.act)
				if want == 0 {
					t.Fatal("the server did nothing bad")
				}
				if tt.class == "" {
					if r.Drops.Total() != 0 {
						t.Errorf("dropped %v, want none", r.Drops)
					}
				} else if r.Drops[tt.class] != want || r.Drops.Total() != want {
					t.Errorf("dropped %v; the server says %d", r.Drops, want)
				}
				if good := srv.count(serve) + srv.count(closeAnnounced); r.OK != good {
					t.Errorf("ok %d; the server says %d", r.OK, good)
				}
				if r.ClosedIdle != 0 {
					t.Errorf("%d connections closed while idle, the server says 0", r.ClosedIdle)
				}
				if int64(r.Connects) != srv.conns.Load() {
					t.Errorf("%d connects; the server says %d", r.Connects, srv.conns.Load())
				}
			})
		}
	}
}

// A server that closes unannounced right after an answer, with clients that cannot know: every such close is one
// request that the server never saw.
func TestRun_BlindClientsLoseOneRequestPerIdleClose(t *testing.T) {
	srv := newBadServer(t, func(_, request int) action {
		if request == 2 {
			return closeIdle
		}
		return serve
	})
	s := post()
	s.Rate = 200 // 40 ms apart, so that no request is on its way when the server closes
	c := quick(srv.l.Addr().String(), s)
	c.Blind = true
	r := run(t, c)
	if closed := srv.count(closeIdle); closed == 0 || r.ClosedIdle != closed {
		t.Errorf("%d connections closed while idle; the server says %d", r.ClosedIdle, closed)
	}
	if answered := srv.count(serve) + srv.count(closeIdle); r.OK != answered || r.Drops.Total() != r.Requests-answered {
		t.Errorf("ok %d, dropped %v of %d; the server answered %d", r.OK, r.Drops, r.Requests, answered)
	}
	if r.Drops[EOF] != r.Drops.Total() || r.Drops[EOF] == 0 {
		t.Errorf("dropped %v, want eof only", r.Drops)
	}
}

// The same server and clients that see the end in time: they lose nothing.
func TestRun_SeeingClientsReconnect(t *testing.T) {
	srv := newBadServer(t, func(_, request int) action {
		if request == 2 {
			return closeIdle
		}
		return serve
	})
	s := post()
	s.Rate = 200
	r := run(t, quick(srv.l.Addr().String(), s))
	// A send may by chance be on its way while the server closes: then it is dropped, never silently repeated.
	if closed := srv.count(closeIdle); closed == 0 || r.ClosedIdle+r.Drops.Total() != closed {
		t.Errorf("%d closed while idle and %v dropped; the server closed %d", r.ClosedIdle, r.Drops, closed)
	}
	if r.Drops.Total() > r.Requests/20 {
		t.Errorf("dropped %v of %d", r.Drops, r.Requests)
	}
}

func TestRun_CloseAfterAccept(t *testing.T) {
	srv := newBadServer(t, func(conn, _ int) action {
		if conn%3 == 0 {
			return slamAfterAccept
		}
		return serve
	})
	s := post()
	s.Kind = NewConn
	r := run(t, quick(srv.l.Addr().String(), s))
	if want := srv.count(slamAfterAccept); want == 0 || r.Drops[EOF]+r.Drops[Reset] != want || r.Drops.Total() != want {
		t.Errorf("dropped %v; the server says %d", r.Drops, want)
	}
}

// A connection that ends while the client had not begun to send costs no request, but is counted.
func TestRun_CloseUnderASilentClient(t *testing.T) {
	srv := newBadServer(t, func(conn, _ int) action {
		if conn%2 == 0 {
			return slamAfterAccept
		}
		return serve
	})
	r := run(t, quick(srv.l.Addr().String(), Stream{Kind: Silent, Silence: 20 * time.Millisecond, Connections: 1, Rate: 20}))
	if want := srv.count(slamAfterAccept); want == 0 || r.ClosedIdle != want || r.Drops.Total() != 0 {
		t.Errorf("%d closed while idle, dropped %v; the server says %d and 0", r.ClosedIdle, r.Drops, want)
	}
}

func TestRun_Refused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	for _, c := range []Config{
		quick(l.Addr().String(), post()),
		{Network: "unix", Address: filepath.Join(t.TempDir(), "none"), Streams: []Stream{post()}, Duration: time.Second},
	} {
		r := run(t, c)
		if r.Requests+r.Unsent != 400 || r.Requests == 0 || r.Drops[Refused] != r.Requests {
			t.Errorf("%d requests and %d unsent, dropped %v; want all of 400 refused", r.Requests, r.Unsent, r.Drops)
		}
	}
}

func TestRun_GoodServerLosesNothing(t *testing.T) {
	addr := goodServer(t)
	for _, rtt := range []time.Duration{0, 10 * time.Millisecond} {
		t.Run("rtt "+rtt.String(), func(t *testing.T) {
			r := run(t, Config{Address: addr, Duration: time.Second, RTT: rtt, Seed: 3, LagLimit: time.Second, Streams: []Stream{
				{Name: "mixed", Connections: 16, Rate: 200, Method: "POST", Body: 3000, Echo: true, Chunked: 0.5, Split: 0.3, Pipeline: 0.2},
				{Name: "large", Connections: 2, Rate: 10, Method: "POST", Body: 1 << 18, Echo: true, Split: 0.5},
				{Name: "get", Connections: 8, Rate: 100, Echo: true},
				{Kind: NewConn, Connections: 16, Rate: 100, Method: "PUT", Body: 10, Echo: true, Chunked: 1, Split: 1},
				{Kind: Silent, Connections: 8, Rate: 20, Silence: 100 * time.Millisecond, Echo: true},
			}})
			if r.Drops.Total() != 0 || r.ClosedIdle != 0 || r.Fault() != "" {
				t.Errorf("\n%s", &r)
			}
			if r.Requests+r.Unsent < 420 { // what is pipelined comes on top
				t.Errorf("%d requests and %d unsent of at least 420", r.Requests, r.Unsent)
			}
			if len(r.Generations) != 1 || r.Generations[0].Name != "1" || r.Generations[0].Responses != r.OK {
				t.Errorf("generations %+v", r.Generations)
			}
			if r.Latency.Count != r.OK || r.Latency.P50 < rtt || r.Latency.Max < r.Latency.P99 {
				t.Errorf("latency %+v", r.Latency)
			}
		})
	}
}

// Slow requests overlap, so that some are in flight at any moment; here over a unix socket.
func TestRun_SlowRequestsOverUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	const takes = 300 * time.Millisecond
	var mu sync.Mutex
	now, most := 0, 0
	srv, served := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		<-time.After(takes)
		mu.Lock()
		now--
		mu.Unlock()
	})}, make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	c := quick(path, Stream{Connections: 20, Rate: 40, Path: "/slow?ms=300"})
	c.Network = "unix"
	r := run(t, c)
	srv.Close()
	<-served
	if r.OK != 40 || r.Drops.Total() != 0 || r.Latency.P50 < takes {
		t.Errorf("\n%s", &r)
	}
	if most < 5 { // 40 a second of 0.3 s each: 12 on average
		t.Errorf("at most %d in flight", most)
	}
}

// The control: what this package exists to find.
func TestRun_FindsTheDropsOfPlainShutdown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	defer f.Close()
	ctx, stop := context.WithCancel(t.Context())
	restarts := 0
	done := make(chan error)
	go func() {
		done <- func() error {
			tick := time.NewTicker(250 * time.Millisecond)
			defer tick.Stop()
			for ; ; restarts++ { // generations on one socket, one after the other
				l, err := net.FileListener(f)
				if err != nil {
					return err
				}
				srv, served := echoServer(string(rune('a'+restarts))), make(chan error, 1)
				go func() { served <- srv.Serve(l) }()
				select {
				case <-tick.C:
					err = srv.Shutdown(ctx)
				case <-ctx.Done():
					err = srv.Close()
				}
				<-served
				if err != nil || ctx.Err() != nil {
					return err
				}
			}
		}()
	}()
	s := post()
	s.Connections, s.Rate = 50, 1000
	c := quick(addr, s)
	c.Duration, c.RTT = 2*time.Second, 20*time.Millisecond
	r := run(t, c)
	stop()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if restarts < 3 || r.Drops.Total() == 0 || r.ClosedIdle == 0 {
		t.Errorf("%d restarts, %d idle connections closed, dropped %v: want some\n%s", restarts, r.ClosedIdle, r.Drops, &r)
	}
	if len(r.Generations) < restarts {
		t.Errorf("%d generations seen of %d", len(r.Generations), restarts)
	}
}
