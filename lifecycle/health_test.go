package lifecycle

import (
	"context"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

func TestHealth_Answers(t *testing.T) {
	for _, tc := range []struct {
		name, method, path string
		serving, leaving   bool
		want               int
	}{
		{"alive", "GET", "/livez", false, false, 200},
		{"alive while it stops", "GET", "/livez", false, true, 200},
		{"ready", "GET", "/readyz", true, false, 200},
		{"asked with HEAD", "HEAD", "/readyz", true, false, 200},
		{"no worker", "GET", "/readyz", false, false, 503},
		{"serving on in a stop", "GET", "/readyz", true, true, 503},
		{"another path", "GET", "/", true, false, 404},
		{"another method", "POST", "/readyz", true, false, 405},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := &health{serving: func(context.Context) bool { return tc.serving }, log: zap.NewNop()}
			h.leaving.Store(tc.leaving)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(tc.method, tc.path, nil))
			if w.Code != tc.want {
				t.Errorf("got %d, want %d", w.Code, tc.want)
			}
		})
	}
}

// Whoever asks often is told what has just been heard, and a master that does not answer is waited for only so long.
func TestHealth_AsksTheMasterNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		h := &health{log: zap.NewNop(), serving: func(ctx context.Context) bool {
			asked++
			if asked < 3 {
				return true
			}
			<-ctx.Done()
			return false
		}}
		for range 50 {
			if !h.ready(t.Context()) {
				t.Fatal("not ready")
			}
		}
		if asked != 1 {
			t.Errorf("asked %d times for 50 questions at once", asked)
		}
		<-time.After(healthAge)
		if !h.ready(t.Context()) || asked != 2 {
			t.Errorf("asked %d times when the answer was old, want 2", asked)
		}
		<-time.After(healthAge)
		began := time.Now()
		if h.ready(t.Context()) || time.Since(began) != healthPatience {
			t.Errorf("a silent master counted as ready, or was waited for for %v", time.Since(began))
		}
	})
}
