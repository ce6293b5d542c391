package verify

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gapless/internal/load"
)

// doing is an act that does something at once.
func doing(name string, do func()) Act {
	return Act{Name: name, Do: func(context.Context) (Outcome, error) { do(); return Outcome{}, nil }}
}

// quick is a plan of about a second.
func quick(t *testing.T, s *badServer, acts ...Act) Plan {
	t.Helper()
	return Plan{
		URL: s.url(t), Acts: acts, Duration: time.Second, SettleBetween: time.Millisecond, Timeout: 20 * time.Second, MaxLag: time.Minute,
		Streams: []Stream{{AnyStatus: true, Stream: load.Stream{Name: "keep", Connections: 4, Rate: 200}}},
	}
}

func run(t *testing.T, p Plan) Report {
	t.Helper()
	r, err := Run(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if sum := r.OK + r.Drops + r.Own + r.Unfinished; sum != r.Requests {
		t.Errorf("%d requests, and %d outcomes", r.Requests, sum)
	}
	byClass, acts, streams, times := 0, r.steadyDrops(), 0, 0
	for _, n := range r.ByClass {
		byClass += n
	}
	for _, a := range r.Acts {
		acts += a.Drops
	}
	for _, s := range r.Streams {
		streams += s.Drops
	}
	for _, b := range r.Timeline {
		times += b.Drops
	}
	if byClass != r.Drops || acts != r.Drops || streams != r.Drops || times != r.Drops {
		t.Errorf("%d drops: %d by class, %d by act, %d by stream, %d over time", r.Drops, byClass, acts, streams, times)
	}
	return r
}

// The report says what the server itself has counted.
func TestRun_CountsWhatABadServerDoes(t *testing.T) {
	tests := []struct {
		misdeed misdeed
		class   load.Class
	}{
		{none, ""}, {resets, load.Reset}, {hangsUp, load.EOF}, {cutsBody, load.Cut}, {stalls, load.Timeout}, {fails, load.Status},
	}
	for _, tt := range tests {
		t.Run(string(tt.misdeed), func(t *testing.T) {
			t.Parallel()
			s := newBadServer(t, tt.misdeed)
			p := quick(t, s, s.arm())
			if tt.misdeed == stalls {
				p.Streams[0].Connections, p.Timeout = 60, 3*time.Second
			}
			r := run(t, p)
			r.Judge(Limits{Closed: -1})
			did := int(s.did.Load())
			if tt.misdeed != none && did == 0 {
				t.Fatal("the server did nothing bad")
			}
			if r.Drops != did || tt.class != "" && r.ByClass[string(tt.class)] != did || r.OK != int(s.served.Load()) {
				t.Errorf("ok %d, drops %v; the server says %d and %d", r.OK, r.ByClass, s.served.Load(), did)
			}
			if want := map[bool]int{true: Failed, false: Passed}[did > 0]; r.Status != want {
				t.Errorf("status %d, want %d: %q", r.Status, want, r.Reasons)
			}
			if r.steadyDrops() != 0 || len(r.Acts) != 1 || r.Acts[0].Drops != did || len(r.Failures) != min(did, maxFailures) {
				t.Errorf("%d drops in steady state, acts %+v, %d failures", r.steadyDrops(), r.Acts, len(r.Failures))
			}
		})
	}
}

// Every connection that is closed while idle is either seen to be or has cost the request that was on its way.
func TestRun_CountsIdleCloses(t *testing.T) {
	s := newBadServer(t, closesIdle)
	r := run(t, quick(t, s, s.arm()))
	did := int(s.did.Load())
	if did == 0 || r.ClosedIdle+r.Drops != did || r.OK != int(s.served.Load())+did {
		t.Errorf("%d closed, %d dropped, ok %d; the server closed %d of %d", r.ClosedIdle, r.Drops, r.OK, did, s.served.Load())
	}
	r.Judge(Limits{Drops: did, Closed: 0})
	if r.Status != Failed || !strings.Contains(strings.Join(r.Reasons, " "), "idle connection") {
		t.Errorf("status %d with no closed connection allowed: %q", r.Status, r.Reasons)
	}
	if r.Judge(Limits{Drops: did, Closed: -1}); r.Status != Passed {
		t.Errorf("status %d with any number allowed: %q", r.Status, r.Reasons)
	}
}

// A rate that nobody could keep up with proves nothing.
func TestRun_AbsurdRateIsNotMeasured(t *testing.T) {
	s := newBadServer(t, none)
	p := quick(t, s)
	p.Streams[0].Rate, p.Streams[0].Connections = 900_000, 2
	r := run(t, p)
	r.Judge(Limits{Closed: -1})
	if r.Status != Unmeasured || r.Unsent == 0 || !strings.Contains(strings.Join(r.Reasons, " "), "keep up") {
		t.Errorf("status %d, %d unsent: %q", r.Status, r.Unsent, r.Reasons)
	}
}

// What a server answers first decides whether it can be measured, and the error says what to do about it.
func TestRun_FirstAnswers(t *testing.T) {
	foreign := func(m Mix) []Stream {
		all, err := m.Streams()
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	file := func(text string) []Stream {
		all, err := ParseRequests([]byte(text), Mix{})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	tests := []struct {
		name    string
		streams []Stream
		status  int
		want    string // "" = it is measured
	}{
		{"well", foreign(Mix{}), 200, ""},
		{"nothing to say", foreign(Mix{}), 204, ""},
		{"elsewhere", foreign(Mix{}), 302, ""},
		{"no such path", foreign(Mix{Path: "/x"}), 404, "GET /x answers 404 Not Found; give --path, or --expect-status 404 if that is right"},
		{"broken from the first", foreign(Mix{Method: "POST"}), 500, "POST / answers 500 Internal Server Error; give --path, or --expect-status 500"},
		{"not found, as expected", foreign(Mix{Status: 404}), 404, ""},
		{"well, not as expected", foreign(Mix{Status: 201}), 200, "GET / answers 200 OK, not 201"},
		{"no such slow path", foreign(Mix{Slow: "/y", Status: 404}), 404, "GET /y answers 404 Not Found; give another --slow"},
		{"no WebSocket", foreign(Mix{WS: "/z"}), 200, "GET /z answers 200 OK and opens no WebSocket; give another --ws"},
		{"a path of a file", file("[{path: /f}]"), 404, "GET /f answers 404 Not Found: mend its path, or its status, in the file of requests"},
		{"a status of a file", file("[{path: /f, status: 404}]"), 404, ""},
		{"another than that of a file", file("[{path: /f, status: 200}]"), 201, "GET /f answers 201 Created, not 200: mend"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newBadServer(t, none)
			s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(tt.status) })
			p := quick(t, s)
			p.Streams, p.Duration = tt.streams, 50*time.Millisecond
			_, err := Run(t.Context(), p)
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
			} else if !errors.Is(err, ErrNothing) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %s", err, tt.want)
			}
		})
	}
}

func TestRun_NothingAnswers(t *testing.T) {
	silent := newBadServer(t, none)
	silent.Config.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-silent.over })
	p := quick(t, silent)
	p.Timeout = 200 * time.Millisecond
	if _, err := Run(t.Context(), p); !errors.Is(err, ErrNothing) || !strings.Contains(err.Error(), "does not answer GET /: no answer within 200ms") {
		t.Errorf("a server that never answers: %v", err)
	}
	gone := newBadServer(t, none)
	u := gone.url(t)
	gone.Server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := Run(ctx, Plan{URL: u, Streams: p.Streams}); err == nil {
		t.Error("a server that is not there was measured")
	}
}

// What an answer's status is before anything is done is what it must be afterwards.
func TestRun_LearnsTheStatus(t *testing.T) {
	s := newBadServer(t, none)
	var now atomic.Int64
	now.Store(http.StatusAccepted)
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(load.HeaderID, "of its own")
		w.WriteHeader(int(now.Load()))
	})
	r := run(t, quick(t, s))
	if r.Drops != 0 || r.OK == 0 {
		t.Errorf("drops %v", r.ByClass)
	}
	r = run(t, quick(t, s, doing("upgrade", func() { now.Store(http.StatusOK) })))
	if r.Drops == 0 || r.ByClass["status"] != r.Drops || r.steadyDrops() != 0 {
		t.Errorf("drops %v, %d in steady state", r.ByClass, r.steadyDrops())
	}
}

// How long answers take decides how many connections are used by those clients whose number nobody has chosen.
func TestRun_LearnsHowLongAnswersTake(t *testing.T) {
	const takes = 100 * time.Millisecond
	s := newBadServer(t, none)
	first := atomic.Bool{}
	s.Config.Handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		wait := takes
		if r.Header.Get(load.HeaderID) == probeID && first.CompareAndSwap(false, true) {
			wait = time.Second // the first answer is slower than those after it
		}
		<-time.After(wait)
	})
	p := quick(t, s)
	p.Streams = []Stream{
		{AnyStatus: true, Stream: load.Stream{Name: "keep", Connections: 4, Rate: 10}},
		{AnyStatus: true, Grow: true, Stream: load.Stream{Name: "new", Kind: load.NewConn, Connections: 1, Rate: 20}},
	}
	if r := run(t, p); r.Drops != 0 || r.OK < 20 || r.Unsent > 2 {
		t.Errorf("%d answered, %d unsent, %v", r.OK, r.Unsent, r.Reasons)
	}
	keep, fresh := p.Streams[0], p.Streams[1]
	if keep.Takes < takes || keep.Takes > 9*takes || keep.Connections != 4 {
		t.Errorf("kept-alive: takes %v, %d connections", keep.Takes, keep.Connections)
	}
	if fresh.Connections < 4 {
		t.Errorf("new: takes %v, %d connections for %g requests a second", fresh.Takes, fresh.Connections, fresh.Rate)
	}
}

// The share of requests that were never sent is blamed on who is to blame.
func TestPlan_Fault(t *testing.T) {
	act := func(change func(*ActReport)) []ActReport {
		a := ActReport{Name: "upgrade", Number: 1, OK: true, Latency: Latency{Count: 100, Max: 0.02}}
		change(&a)
		return []ActReport{a}
	}
	tests := []struct {
		name  string
		load  load.Report
		takes time.Duration
		acts  []ActReport
		want  string
	}{
		{"all sent", load.Report{Requests: 100}, time.Second, nil, ""},
		{"a few unsent", load.Report{Requests: 100, Unsent: 2}, 0, nil, ""},
		{"too few connections", load.Report{Requests: 50, Unsent: 50}, 200 * time.Millisecond, nil, "keep needs 100 requests a second, each takes 200 ms, and so 4 connections can send at most 20: lower --rate, or use 26 connections"},
		{"too few connections, which the lag shows", load.Report{Requests: 100, Lag: load.Quantiles{P99: time.Minute}}, 200 * time.Millisecond, nil, "4 connections can send"},
		{"a slow machine", load.Report{Requests: 100, Unsent: 50, Lag: load.Quantiles{P99: time.Minute}}, 0, nil, "this machine was too slow, or too busy, for the load: requests were 60 s late"},
		{"a slow server", load.Report{Requests: 50, Unsent: 50}, 0, act(func(*ActReport) {}), "did not keep up with the rate: 50 of 100 requests found no time to be sent, for all connections waited for answers: lower --rate"},
		{"an upgrade that failed", load.Report{Requests: 50, Unsent: 50}, 0, act(func(a *ActReport) { a.OK = false }), "; upgrade 1 has failed"},
		{"an upgrade that dropped", load.Report{Requests: 50, Unsent: 50}, 0, act(func(a *ActReport) { a.Drops = 1 }), "; see what was dropped since upgrade 1"},
		{"an upgrade to a release that is not ready", load.Report{Requests: 50, Unsent: 50}, 0, act(func(a *ActReport) { a.Latency.Max = 8 }), "waited for answers, for up to 8.00 s since upgrade 1: its release counts as ready before it answers"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := Plan{Streams: []Stream{{Stream: load.Stream{Name: "keep", Connections: 4, Rate: 100, Takes: tt.takes}}}}
			tt.load.LagLimit = time.Second
			got := p.fault(&tt.load, &Report{Acts: tt.acts, Steady: Latency{Count: 100, Max: 0.02}})
			if !strings.Contains(got, tt.want) || (tt.want == "") != (got == "") {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestRun_Acts(t *testing.T) {
	s := newBadServer(t, none)
	var generation atomic.Value
	generation.Store("1")
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(load.HeaderGeneration, generation.Load().(string))
	})
	var told progresses
	p := quick(t, s,
		Act{Name: "upgrade", Do: func(context.Context) (Outcome, error) {
			generation.Store("2")
			return Outcome{Generation: 2}, nil
		}},
		Act{Name: "upgrade", Do: func(context.Context) (Outcome, error) { return Outcome{}, errors.New("aborted: it is bad") }},
		Act{Name: "slow", Do: func(ctx context.Context) (Outcome, error) { <-ctx.Done(); return Outcome{}, ctx.Err() }},
	)
	p.ActTimeout, p.Progress = 200*time.Millisecond, told.add
	r := run(t, p)
	r.Judge(Limits{Closed: -1})
	if len(r.Acts) != 3 || r.Status != Failed || len(r.Reasons) != 2 {
		t.Fatalf("status %d %q, acts %+v", r.Status, r.Reasons, r.Acts)
	}
	if a := r.Acts[0]; !a.OK || a.Generation != "2" || !a.FirstSeen || a.First <= 0 {
		t.Errorf("the first act: %+v", a)
	}
	if a := r.Acts[1]; a.OK || a.Reason != "aborted: it is bad" {
		t.Errorf("the second act: %+v", a)
	}
	if a := r.Acts[2]; a.OK || !strings.Contains(a.Reason, "not done after 200ms") || a.Took < 0.2 {
		t.Errorf("the third act: %+v", a)
	}
	begun, ended, live := 0, 0, 0
	for _, x := range told.all {
		switch {
		case x.Live != nil:
			live++
		case x.Ended:
			ended++
		default:
			begun++
		}
	}
	if begun != 3 || ended != 3 || live == 0 {
		t.Errorf("told of %d beginnings and %d ends, showed %d", begun, ended, live)
	}
}

// canceled is a cause that counts as a cancellation, as that of a signal does.
type canceled struct{}

func (canceled) Error() string        { return "enough" }
func (canceled) Is(target error) bool { return target == context.Canceled }

func TestRun_EndsWithItsContext(t *testing.T) {
	for _, enough := range []error{errors.New("enough"), canceled{}} {
		for _, when := range []string{"at an act", "in an act", "at the last act"} {
			t.Run(fmt.Sprintf("%T %s", enough, when), func(t *testing.T) {
				t.Parallel()
				s := newBadServer(t, none)
				ctx, cancel := context.WithCancelCause(t.Context())
				acts := []Act{doing("upgrade", func() { cancel(enough) })}
				if when != "at the last act" {
					acts = append(acts, doing("upgrade", func() { t.Error("an act after the end") }))
				}
				if when == "in an act" {
					acts[0].Do = func(ctx context.Context) (Outcome, error) {
						cancel(enough)
						<-ctx.Done()
						return Outcome{}, fmt.Errorf("upgrade: %w", ctx.Err())
					}
				}
				p := quick(t, s, acts...)
				p.Duration = time.Minute
				begin := time.Now()
				r, err := Run(ctx, p)
				if !errors.Is(err, enough) || time.Since(begin) > 50*time.Second || r.OK == 0 || len(r.Acts) != 1 {
					t.Errorf("%v after %v, ok %d, acts %+v", err, time.Since(begin), r.OK, r.Acts)
				}
				if when == "in an act" && r.Acts[0].Reason != "interrupted" {
					t.Errorf("the act says %q", r.Acts[0].Reason)
				}
			})
		}
	}
}

// The default run is as short as it promises: 5 s and 4 s for each upgrade.
func TestPlan_DefaultsAreShort(t *testing.T) {
	for _, n := range []int{0, 1, 5, 50} {
		p := Plan{URL: (&badServer{}).none(), Streams: []Stream{{}}, Acts: make([]Act, n)}
		p, err := p.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		if limit := 5*time.Second + time.Duration(n)*4*time.Second; p.Duration > limit {
			t.Errorf("%d upgrades take %v, more than %v", n, p.Duration, limit)
		}
		for i := 1; i < n; i++ {
			if p.begins(i)-p.begins(i-1) < 2*time.Second || p.begins(i) > p.Duration-time.Second {
				t.Errorf("of %d upgrades, %d begins at %v", n, i, p.begins(i))
			}
		}
	}
}
