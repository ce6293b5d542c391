// Package loadtest lets tests demand things of a load report, and shows the whole of it when they are not met.
package loadtest

import (
	"testing"

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

// Run runs the load, bounded by the test, and fails it if the configuration is wrong.
func Run(t testing.TB, c load.Config) load.Report {
	t.Helper()
	r, err := load.Run(t.Context(), c)
	if err != nil {
		t.Fatalf("%v\n%s", err, &r)
	}
	return r
}
