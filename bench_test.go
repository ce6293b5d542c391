package gapless

import (
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
)

// trip sends a request and reads its answer, without allocating.
type trip struct {
	c    net.Conn
	send []byte
	buf  [4096]byte
	want int
}

func newTrip(tb testing.TB, addr, send string) *trip {
	tb.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	tr := &trip{c: c, send: []byte(send)}
	if _, err := c.Write(tr.send); err != nil {
		tb.Fatal(err)
	}
	// The answers are equal and come in one segment.
	if tr.want, err = c.Read(tr.buf[:]); err != nil {
		tb.Fatal(err)
	}
	return tr
}

func (tr *trip) run(tb testing.TB) {
	if _, err := tr.c.Write(tr.send); err != nil {
		tb.Fatal(err)
	}
	if _, err := io.ReadFull(tr.c, tr.buf[:tr.want]); err != nil {
		tb.Fatal(err)
	}
}

var trips = []struct{ name, send string }{
	{"get", get},
	{"post", post("/", "Content-Length: 5\r\n", "hello")},
	{"chunked", chunked("5\r\nhello\r\n0\r\n\r\n")},
}

func drainBody(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	_, _ = io.WriteString(w, "ok")
}

// bareAddr and oursAddr serve the same handler without and with the wrapper.
func bareAddr(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(drainBody)}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	tb.Cleanup(func() { _ = srv.Close(); wg.Wait() })
	return l.Addr().String()
}

func oursAddr(tb testing.TB) string {
	tb.Helper()
	p := noEnv(tb)
	addr, done := serveOn(tb, p, "web", &http.Server{Handler: http.HandlerFunc(drainBody)})
	tb.Cleanup(func() { p.orderStop(); await(tb, done) })
	return addr
}

func BenchmarkRequest(b *testing.B) {
	for _, tc := range trips {
		for _, side := range []struct {
			name string
			addr func(testing.TB) string
		}{{"bare", bareAddr}, {"gapless", oursAddr}} {
			b.Run(tc.name+"/"+side.name, func(b *testing.B) {
				tr := newTrip(b, side.addr(b), tc.send)
				b.ReportAllocs()
				for b.Loop() {
					tr.run(b)
				}
			})
		}
	}
}
