package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// How the questions of a load balancer or an orchestrator are answered.
const (
	// healthPatience is how long the master in charge may take: less than the second that Kubernetes waits by default.
	healthPatience = 800 * time.Millisecond
	// healthAge is how old an answer may be, so that who asks often asks the master no more often than this.
	healthAge = 100 * time.Millisecond
)

// health is the endpoint of --health. It is the parent's, so that it answers while masters come and go:
//   - /livez says that the parent lives. It is 200 for as long as there is an answer at all: what can be mended without a
//     restart of everything the parent mends itself.
//   - /readyz says whether new connections should come here: 200 while a worker of the generation in charge is ready (or,
//     while a dead master's place is taken, lives), 503 otherwise and from the moment in which a stop begins, also where --lame-duck lets it serve on.
type health struct {
	listener net.Listener
	serving  func(ctx context.Context) bool // asks the master in charge
	leaving  atomic.Bool                    // a stop has begun
	log      *zap.Logger

	mu    sync.Mutex
	known bool
	at    time.Time // of what is known
}

// openHealth opens the endpoint; nil where none is asked for.
func openHealth(addr string, serving func(ctx context.Context) bool, log *zap.Logger) (*health, error) {
	h := &health{serving: serving, log: log}
	if addr == "" {
		return h, nil
	}
	var err error
	if h.listener, err = net.Listen("tcp", addr); err != nil {
		return nil, fmt.Errorf("--health %s: %w; choose an address that is free", addr, err)
	}
	return h, nil
}

// run answers until ctx ends, and on until the last answer has been given.
func (h *health) run(ctx context.Context) error {
	srv := &http.Server{Handler: h, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10,
		ErrorLog: zap.NewStdLog(h.log)}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(h.listener) }()
	select {
	case err := <-ended:
		return fmt.Errorf("--health %s: %w", h.listener.Addr(), err)
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	err := srv.Shutdown(last)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	<-ended
	return errors.Join(ctx.Err(), err)
}

// close gives the address back where run has not been called.
func (h *health) close() {
	if h.listener != nil {
		_ = h.listener.Close()
	}
}

func (h *health) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	switch r.URL.Path {
	case "/livez":
		_, _ = io.WriteString(w, "ok\n")
	case "/readyz":
		switch {
		case h.leaving.Load():
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, "stopping\n")
		case !h.ready(r.Context()):
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, "no worker is ready\n")
		default:
			_, _ = io.WriteString(w, "ok\n")
		}
	default:
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, "ask for /livez or /readyz\n")
	}
}

// ready asks the master in charge, unless it has just been asked. Of many who ask at once one does it for all.
func (h *health) ready(ctx context.Context) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.at.IsZero() && time.Since(h.at) < healthAge {
		return h.known
	}
	// Not cut short with the one who asks: others wait for the same answer.
	ask, cancel := context.WithTimeout(context.WithoutCancel(ctx), healthPatience)
	defer cancel()
	h.known = h.serving(ask)
	h.at = time.Now()
	return h.known
}
