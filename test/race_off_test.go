//go:build linux && !race

package test

// raceEnabled: the server under test is built as the tests are.
const raceEnabled = false
