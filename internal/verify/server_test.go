package verify

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"

	"gapless/internal/load"
)

// misdeed is what a bad server does with every seventh request.
type misdeed string

const (
	none       misdeed = "none"
	resets     misdeed = "reset in flight"
	hangsUp    misdeed = "close in flight"
	cutsBody   misdeed = "cut body"
	stalls     misdeed = "stall"
	fails      misdeed = "status 500"
	closesIdle misdeed = "close after the answer, unannounced"
)

// badServer does its misdeed only while it is armed, and keeps its own count.
type badServer struct {
	*httptest.Server
	misdeed misdeed
	armed   atomic.Bool
	seen    atomic.Int64
	did     atomic.Int64
	served  atomic.Int64 // answered in full
	over    chan struct{}
}

func newBadServer(t *testing.T, m misdeed) *badServer {
	t.Helper()
	s := &badServer{misdeed: m, over: make(chan struct{})}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Server.Close)
	t.Cleanup(func() { close(s.over) })
	return s
}

func (s *badServer) url(t *testing.T) *url.URL {
	t.Helper()
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func (s *badServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	if r.Header.Get(load.HeaderID) == probeID {
		return
	}
	if s.armed.Load() && s.seen.Add(1)%7 == 0 && s.misdeed != none {
		s.did.Add(1)
		s.misbehave(w)
		return
	}
	s.served.Add(1)
	_, _ = io.WriteString(w, "ok")
}

func (s *badServer) misbehave(w http.ResponseWriter) {
	switch s.misdeed {
	case fails:
		http.Error(w, "broken", http.StatusInternalServerError)
		return
	case stalls:
		<-s.over
		return
	}
	nc, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer nc.Close()
	switch s.misdeed {
	case resets:
		nc.(*net.TCPConn).SetLinger(0)
	case cutsBody:
		_, _ = io.WriteString(nc, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
	case closesIdle:
		_, _ = io.WriteString(nc, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}
}

// arm is an act that lets the server misbehave from then on.
func (s *badServer) arm() Act {
	return doing("upgrade", func() { s.armed.Store(true) })
}

// progresses gathers what a plan tells.
type progresses struct {
	mu  sync.Mutex
	all []Progress
}

func (p *progresses) add(x Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, x)
}

func (*badServer) none() *url.URL { return &url.URL{Scheme: "http", Host: "127.0.0.1:1"} }

func TestLastWords(t *testing.T) {
	tests := []struct {
		name  string
		lines []string
		want  string
	}{
		{"nothing", nil, ""},
		{"of a worker alone", []string{"boom"}, ""},
		{"why it ended", []string{"boom", "gapless: worker 0 ended before it was ready: exit status 1", "later"}, "worker 0 ended before it was ready: exit status 1"},
		{"an address", []string{"Error: listen EADDRINUSE: address already in use 127.0.0.1:3000", "gapless: worker 0 ended"}, "worker 0 ended; it opens an address by itself, which is in use: if gapless should serve there, give that port with --port"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := lastWords(tt.lines) + addressHint(tt.lines); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}
