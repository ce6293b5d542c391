// Package loadtest lets tests demand things of a load report, and shows the whole of it when they are not met.
package loadtest

import (
	"context"
	"sync"
	"testing"
	"time"

	"gapless/internal/load"
)

// Require fails the test now unless the load was really generated and nothing was dropped.
func Require(t testing.TB, r load.Report) {
	t.Helper()
	if f := r.Fault(); f != "" {
		t.Fatalf("the load proves nothing: %s\n%s", f, &r)
	}
	if n := r.Drops.Total(); n != 0 {
		t.Fatalf("%d of %d requests dropped\n%s", n, r.Requests, &r)
	}
	if r.OK == 0 || r.OK != r.Requests {
		t.Fatalf("%d of %d requests answered\n%s", r.OK, r.Requests, &r)
	}
}

// RequireNoClose is Require, and fails too if the server closed a connection that was idle.
func RequireNoClose(t testing.TB, r load.Report) {
	t.Helper()
	Require(t, r)
	if r.ClosedIdle != 0 {
		t.Fatalf("%d idle connections closed by the server\n%s", r.ClosedIdle, &r)
	}
}

// lagLimit is what tests use for want of another: they prove that nothing is dropped, also on a machine that is busy
// with other tests and under the race detector, and do not measure.
const lagLimit = time.Second

// Run runs the load, bounded by the test, and fails it if the configuration is wrong.
func Run(t testing.TB, c load.Config) load.Report {
	t.Helper()
	return Start(t, c)()
}

// Start runs the load beside what the test does next. finish waits until it is over and returns the report; it is called
// once.
func Start(t testing.TB, c load.Config) (finish func() load.Report) {
	t.Helper()
	if c.LagLimit == 0 {
		c.LagLimit = lagLimit
	}
	ctx, cancel := context.WithCancel(t.Context())
	type result struct {
		r   load.Report
		err error
	}
	done := make(chan result, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		r, err := load.Run(ctx, c)
		done <- result{r, err}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return func() load.Report {
		t.Helper()
		res := <-done
		if res.err != nil {
			t.Fatalf("%v\n%s", res.err, &res.r)
		}
		return res.r
	}
}

// During runs the load while do runs: c.Duration is an upper bound, and the sending ends when do returns.
func During(t testing.TB, c load.Config, do func()) load.Report {
	t.Helper()
	stop := make(chan struct{})
	c.Stop = stop
	finish := Start(t, c)
	func() {
		defer close(stop) // also when do ends the test
		do()
	}()
	return finish()
}
