package verify

import (
	"context"
	"errors"
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

func TestRun_NothingAnswers(t *testing.T) {
	s := newBadServer(t, fails)
	p := quick(t, s)
	p.Streams[0].Path = "/nothing"
	broken := Plan{URL: s.url(t), Streams: p.Streams}
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	if _, err := Run(t.Context(), broken); !errors.Is(err, ErrNothing) || !strings.Contains(err.Error(), "status 502") {
		t.Errorf("a server that fails before the load: %v", err)
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
	now.Store(http.StatusNotFound)
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

func TestRun_EndsWithItsContext(t *testing.T) {
	s := newBadServer(t, none)
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	p := quick(t, s, doing("upgrade", func() { cancel(enough) }))
	p.Duration = time.Minute
	begin := time.Now()
	r, err := Run(ctx, p)
	if !errors.Is(err, enough) || time.Since(begin) > 30*time.Second || r.OK == 0 {
		t.Errorf("%v after %v, ok %d", err, time.Since(begin), r.OK)
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
