//go:build linux

package test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// reply is a response over a connection of its own.
type reply struct {
	t      testing.TB
	status int
	header http.Header
	body   string
}

// client opens a connection per request to an address, which may be unix:PATH.
func client(addr string) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		network := "tcp"
		if path, ok := strings.CutPrefix(addr, "unix:"); ok {
			network, addr = "unix", path
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}, Timeout: patience}
}

// get asks and fails the test if there is no answer.
func (s *server) get(path string) reply { s.t.Helper(); return get(s.t, s.addr, path) }

func get(t testing.TB, addr, path string) reply {
	t.Helper()
	r, err := tryGet(t, addr, path)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func tryGet(t testing.TB, addr, path string) (reply, error) {
	resp, err := client(addr).Get("http://server" + path)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return reply{t, resp.StatusCode, resp.Header, string(body)}, err
}

// generation demands which generation has answered.
func (r reply) generation(want int) reply {
	r.t.Helper()
	if got := r.header.Get("X-Gapless-Generation"); got != strconv.Itoa(want) {
		r.t.Errorf("generation %q answered, want %d", got, want)
	}
	return r
}

// into reads the body as JSON.
func (r reply) into(v any) {
	r.t.Helper()
	if err := json.Unmarshal([]byte(r.body), v); err != nil {
		r.t.Fatalf("%v in %q", err, r.body)
	}
}

// later is a request whose answer is waited for later.
type later struct {
	done chan struct{}
	r    reply
	err  error
}

// ask begins a request.
func (s *server) ask(path string) *later {
	l := &later{done: make(chan struct{})}
	go func() {
		defer close(l.done)
		l.r, l.err = tryGet(s.t, s.addr, path)
	}()
	s.t.Cleanup(func() { <-l.done })
	return l
}

// answer waits for the answer.
func (l *later) answer(t testing.TB) reply {
	t.Helper()
	<-l.done
	if l.err != nil {
		t.Fatalf("the request in flight was lost: %v", l.err)
	}
	return l.r
}
