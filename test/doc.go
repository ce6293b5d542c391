// Package test holds the end-to-end tests: real processes, real signals, real connections.
//
// Each test runs a gapless of its own, built once per run from this checkout (with the race detector if the tests have
// it), and reads what it logs. When a test ends, its gapless must be gone together with everything that it started;
// no process of it may have been a zombie for longer than a moment, and no line of its output may report a data race.
//
// Where a worker has to misbehave, it is the test binary itself in a role (roles_test.go).
//
// The counts are reduced ones; with GAPLESS_SOAK=1 they are those that the promises are made with.
package test
