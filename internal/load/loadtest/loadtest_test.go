package loadtest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"gapless/internal/load"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is a test that may fail.
type recorder struct {
	testing.TB
	message string
}

func (r *recorder) Helper() {}

func (r *recorder) Fatalf(format string, args ...any) {
	r.message = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestRequire(t *testing.T) {
	good := load.Report{Requests: 2, OK: 2, LagLimit: time.Second}
	dropped := load.Report{Requests: 2, OK: 1, LagLimit: time.Second, Drops: load.Drops{load.Reset: 1}}
	canceled := load.Report{Requests: 2, OK: 1, Canceled: 1, LagLimit: time.Second}
	closed := load.Report{Requests: 2, OK: 2, ClosedIdle: 3, LagLimit: time.Second}
	tests := []struct {
		name    string
		require func(testing.TB, load.Report)
		r       load.Report
		want    string // "" = passes
	}{
		{"good", Require, good, ""},
		{"dropped", Require, dropped, "reset 1"},
		{"nothing sent", Require, load.Report{LagLimit: time.Second}, "proves nothing"},
		{"canceled", Require, canceled, "1 of 2 requests answered"},
		{"closed", Require, closed, ""},
		{"closed, not allowed", RequireNoClose, closed, "3 idle connections"},
		{"good and no close", RequireNoClose, good, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rec := &recorder{TB: t}
			done := make(chan struct{})
			go func() {
				defer close(done)
				tt.require(rec, tt.r)
			}()
			<-done
			if (tt.want == "") != (rec.message == "") || !strings.Contains(rec.message, tt.want) {
				t.Errorf("got %q, want %q", rec.message, tt.want)
			}
			if tt.want != "" && !strings.Contains(rec.message, "requests     ") {
				t.Errorf("the report is missing: %q", rec.message)
			}
		})
	}
}

func TestDuring(t *testing.T) {
	served := make(chan struct{}, 1000)
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served <- struct{}{} }))
	defer srv.Close()
	c := load.Config{
		Address: strings.TrimPrefix(srv.URL, "http://"), Duration: time.Minute,
		Streams: []load.Stream{{Connections: 2, Rate: 100}},
	}
	r := During(t, c, func() {
		for range 10 {
			<-served
		}
	})
	Require(t, r)
	if r.OK < 10 || r.Took > 30*time.Second {
		t.Errorf("\n%s", &r)
	}
}
