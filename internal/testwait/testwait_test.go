package testwait

import (
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// recorder ends like a test that fails, and keeps what it was told.
type recorder struct {
	testing.TB
	failure string
}

func (*recorder) Helper() {}

func (r *recorder) Fatalf(format string, args ...any) {
	r.failure = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestUntil(t *testing.T) {
	const never = time.Duration(1<<63 - 1)
	for _, tc := range []struct {
		name    string
		after   time.Duration // when the condition becomes true
		took    time.Duration
		failure string
	}{
		{"true at once", 0, 0, ""},
		{"true between two ticks", 12 * time.Millisecond, 15 * time.Millisecond, ""},
		{"true at the very end", time.Minute, time.Minute, ""},
		{"too late", time.Minute + time.Nanosecond, time.Minute, "not within 1m0s: the sun rises"},
		{"never", never, time.Minute, "not within 1m0s: the sun rises"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				r := &recorder{TB: t}
				returned := false
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					Until(r, "the sun rises", func() bool { return time.Since(began) >= tc.after })
					returned = true
				}()
				<-ended
				if took := time.Since(began); took != tc.took {
					t.Errorf("took %v, want %v", took, tc.took)
				}
				if r.failure != tc.failure || returned != (tc.failure == "") {
					t.Errorf("returned: %v, failure %q, want %q", returned, r.failure, tc.failure)
				}
			})
		})
	}
}

func TestUntil_ConditionMayEndTheTest(t *testing.T) {
	r := &recorder{TB: t}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Until(r, "the sun rises", func() bool { r.Fatalf("it exploded"); return true })
	}()
	<-ended
	if r.failure != "it exploded" {
		t.Errorf("failure %q", r.failure)
	}
}
