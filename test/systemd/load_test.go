//go:build linux

package systemd

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"gapless/internal/load"
)

// under runs n acts under load, and returns what the load saw.
func (h *host) under(t testing.TB, addr string, n int, act func(i int)) load.Report {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var (
		report load.Report
		err    error
	)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		report, err = load.Run(ctx, load.Config{
			Address: addr, Duration: 10 * patience, Timeout: 20 * time.Second, LagLimit: time.Second, Dial: h.dial,
			Streams: []load.Stream{
				{Kind: load.KeepAlive, Connections: 16, Rate: 160, Method: http.MethodPost, Path: "/echo", Body: 200, Echo: true},
				{Kind: load.NewConn, Connections: 8, Rate: 40, Method: http.MethodPost, Path: "/echo", Body: 200, Echo: true},
			},
		})
	}()
	defer func() {
		stop()
		<-ended
	}()
	pause := func() {
		select {
		case <-time.After(300 * time.Millisecond):
		case <-ended:
		}
	}
	for i := range n {
		pause()
		act(i)
	}
	pause()
	select {
	case <-ended:
		t.Fatalf("the load was over before all was done under it: %v\n%s", err, &report)
	default:
	}
	stop()
	<-ended
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("the load: %v\n%s", err, &report)
	}
	if f := report.Fault(); f != "" {
		t.Fatalf("the load proves nothing: %s\n%s", f, &report)
	}
	if report.OK == 0 {
		t.Fatalf("nothing was answered\n%s", &report)
	}
	return report
}

func lostNone(t testing.TB, r load.Report) {
	t.Helper()
	if n := r.Drops.Total(); n != 0 {
		t.Errorf("%d of %d requests lost\n%s", n, r.Requests, &r)
	}
}
