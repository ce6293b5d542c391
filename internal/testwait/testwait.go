// Package testwait lets tests wait for what nothing tells of: the state of the
// kernel or of another process. What can be waited for, such as a channel, a
// file or a connection, is waited for itself.
//
// Only tests import it.
package testwait

import (
	"testing"
	"time"
)

const (
	// patience is no bound that a test asserts: it only ends a test that would
	// never end, also on a machine that is slow. Whatever could make the
	// condition true by another way than the tested one, such as the end of a
	// timeout, must take longer.
	patience = time.Minute
	tick     = 5 * time.Millisecond
)

// Until returns when ok does so with true. It asks at once, and then every 5 ms,
// in the test's goroutine, so ok may end the test. After a minute it ends the
// test with what, the condition in words.
func Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-ticker.C {
		// Looked at after ok has had its say, so the last word is the condition's.
		if !time.Now().Before(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}
