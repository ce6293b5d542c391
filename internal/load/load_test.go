package load

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
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
	if sum := r.OK + r.Drops.Total() + r.Canceled + r.Local; sum != r.Requests {
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
		if r.Requests != 400 || r.Drops[Refused] != 400 {
			t.Errorf("%d requests, dropped %v; want 400 refused", r.Requests, r.Drops)
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
							once.Do(func() { time.Sleep(time.Second) }) // the bubble's clock
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
						time.Sleep(10 * time.Second)
						return serve
					}}).conn(server, 0)
				})
				return client, nil
			},
		}
		time.AfterFunc(45*time.Second, func() { close(stop) })
		r, err := Run(t.Context(), c)
		wg.Wait()
		if err != nil || r.Requests != r.OK || r.OK < 4 || r.OK > 5 || r.Unsent != 0 || r.Took < 45*time.Second || r.Took > time.Minute {
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

func TestRun_RefusesBadConfig(t *testing.T) {
	good := quick("127.0.0.1:1", post())
	tests := []struct {
		name string
		mod  func(*Config)
		want string
	}{
		{"no address", func(c *Config) { c.Address = "" }, "address"},
		{"network", func(c *Config) { c.Network = "udp" }, "network"},
		{"no streams", func(c *Config) { c.Streams = nil }, "streams"},
		{"no duration", func(c *Config) { c.Duration = 0 }, "duration"},
		{"negative rtt", func(c *Config) { c.RTT = -1 }, "rtt"},
		{"too much", func(c *Config) { c.Duration = time.Hour }, "max requests"},
		{"kind", func(c *Config) { c.Streams[0].Kind = "x" }, "kind"},
		{"connections", func(c *Config) { c.Streams[0].Connections = 0 }, "connections"},
		{"rate", func(c *Config) { c.Streams[0].Rate = 0 }, "rate"},
		{"path", func(c *Config) { c.Streams[0].Path = "/a b" }, "path"},
		{"body of a GET", func(c *Config) { c.Streams[0].Method = "GET" }, "body"},
		{"share", func(c *Config) { c.Streams[0].Split = 1.5 }, "split"},
		{"pipelined new connections", func(c *Config) { c.Streams[0].Kind, c.Streams[0].Pipeline = NewConn, 0.1 }, "pipeline"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := good
			c.Streams = []Stream{post()}
			tt.mod(&c)
			if _, err := Run(t.Context(), c); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), tt.want+":") {
				t.Errorf("got %v, want ErrConfig about %s", err, tt.want)
			}
		})
	}
}

func TestCompose_SameSeedSameBytes(t *testing.T) {
	s := post()
	s.Split, s.Chunked, s.Pipeline = 0.5, 0.5, 0.5
	if err := s.complete(); err != nil {
		t.Fatal(err)
	}
	draw := func(seed uint64) (all [][]byte) {
		rng := rand.New(rand.NewPCG(seed, 0))
		for k := range 50 {
			all = append(all, compose(&s, "h", rng, 0, k, time.Time{}).pieces...)
		}
		return all
	}
	if !reflect.DeepEqual(draw(1), draw(1)) {
		t.Error("one seed gives different bytes")
	}
	if reflect.DeepEqual(draw(1), draw(2)) {
		t.Error("two seeds give the same bytes")
	}
}

func TestReport_Fault(t *testing.T) {
	tests := []struct {
		name string
		r    Report
		want string
	}{
		{"good", Report{Requests: 1, OK: 1, LagLimit: time.Second}, ""},
		{"late", Report{Requests: 1, LagLimit: time.Millisecond, Lag: Quantiles{P99: 2 * time.Millisecond}}, "fell behind"},
		{"no ports", Report{Requests: 1, Local: 1}, "ports"},
		{"nothing", Report{}, "nothing was sent"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.r.Fault()
			if (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestClassOf_FaultsOfThisMachine(t *testing.T) {
	for _, err := range []error{syscall.EMFILE, syscall.EADDRNOTAVAIL, syscall.ENOBUFS} {
		if got := classOf(&net.OpError{Op: "dial", Err: err}); got != local {
			t.Errorf("%v: got %q, want local: it is not the server's fault", err, got)
		}
	}
}

func TestQuantiles(t *testing.T) {
	var d []time.Duration
	for i := 1000; i >= 1; i-- {
		d = append(d, time.Duration(i))
	}
	if got := quantiles(d); got != (Quantiles{1000, 500, 990, 999, 1000}) {
		t.Errorf("got %+v", got)
	}
	if got := quantiles([]time.Duration{7}); got != (Quantiles{1, 7, 7, 7, 7}) {
		t.Errorf("of one: %+v", got)
	}
}
