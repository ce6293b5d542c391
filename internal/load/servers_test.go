package load

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// action is what a bad server does with one request.
type action int

const (
	serve           action = iota
	reset                  // close with RST instead of an answer
	hangUp                 // close with FIN instead of an answer
	cutBody                // half of the body, then close
	cutHead                // half of the head, then close
	stall                  // no answer, and the connection stays open
	wrongBody              // right length, wrong bytes
	wrongID                // somebody else's answer
	wrongStatus            // 500
	closeIdle              // answer, then close without having said so
	closeAnnounced         // answer with Connection: close, then close
	slamAfterAccept        // close without reading; decided per connection
)

// badServer misbehaves as told and keeps the count by which the client is judged.
type badServer struct {
	l      net.Listener
	decide func(conn, request int) action // numbers from 0; request -1 is the moment of accepting
	wg     sync.WaitGroup
	stop   chan struct{}
	did    [slamAfterAccept + 1]atomic.Int64
	conns  atomic.Int64
	// gate, if set, is called before an unannounced close.
	gate func()
}

func newBadServer(t *testing.T, decide func(conn, request int) action) *badServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveBadly(t, l, decide)
}

func serveBadly(t *testing.T, l net.Listener, decide func(conn, request int) action) *badServer {
	s := &badServer{l: l, decide: decide, stop: make(chan struct{})}
	s.wg.Go(func() {
		for n := 0; ; n++ {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			s.conns.Add(1)
			s.wg.Go(func() { s.conn(nc, n) })
		}
	})
	t.Cleanup(s.close)
	return s
}

func (s *badServer) close() {
	s.l.Close()
	close(s.stop)
	s.wg.Wait()
}

func (s *badServer) count(a action) int { return int(s.did[a].Load()) }

func (s *badServer) conn(nc net.Conn, n int) {
	defer nc.Close()
	if s.decide(n, -1) == slamAfterAccept {
		s.did[slamAfterAccept].Add(1)
		return
	}
	br := bufio.NewReader(nc)
	for i := 0; ; i++ {
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		a := s.decide(n, i)
		s.did[a].Add(1)
		if !s.answer(nc, a, req.Header.Get(HeaderID), body) || req.Close {
			return
		}
	}
}

// answer is false when the connection is to be closed.
func (s *badServer) answer(nc net.Conn, a action, id string, body []byte) bool {
	head := func(status, id, extra string) string {
		return "HTTP/1.1 " + status + "\r\n" + HeaderID + ": " + id + "\r\n" + HeaderGeneration + ": 1\r\n" + extra +
			"Content-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n"
	}
	text := head("200 OK", id, "") + string(body)
	keep := true
	switch a {
	case reset:
		if tc, ok := nc.(*net.TCPConn); ok {
			tc.SetLinger(0)
		}
		return false
	case hangUp:
		return false
	case cutBody:
		text, keep = text[:len(text)-len(body)/2-1], false
	case cutHead:
		text, keep = text[:20], false
	case stall:
		<-s.stop
		return false
	case wrongBody:
		text = head("200 OK", id, "") + strings.Repeat("x", len(body))
	case wrongID:
		text = head("200 OK", id+"0", "") + string(body)
	case wrongStatus:
		text = head("500 Oops", id, "") + string(body)
	case closeIdle:
		keep = false
	case closeAnnounced:
		text, keep = head("200 OK", id, "Connection: close\r\n")+string(body), false
	}
	io.WriteString(nc, text)
	if a == closeIdle && s.gate != nil {
		s.gate()
	}
	return keep
}

// goodServer is net/http as an echo server.
func goodServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv, done := echoServer("1"), make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func echoServer(generation string) *http.Server {
	return &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(HeaderID, r.Header.Get(HeaderID))
		w.Header().Set(HeaderGeneration, generation)
		body, err := io.ReadAll(r.Body) // first of all: net/http stops reading once an answer has begun
		if err == nil {
			w.Write(body)
		}
	})}
}
