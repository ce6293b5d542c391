package gapless

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gapless/internal/handoff"
	"gapless/internal/testwait"
)

// asker asks on one connection.
type asker struct {
	net.Conn
	br *bufio.Reader
}

func newAsker(c net.Conn) asker { return asker{c, bufio.NewReader(c)} }

func (a asker) send(t testing.TB, text string) {
	t.Helper()
	if _, err := io.WriteString(a, text); err != nil {
		t.Fatal(err)
	}
}

// answer returns the generation that answers, and the body.
func (a asker) answer(t testing.TB) (generation, body string) {
	t.Helper()
	resp, err := http.ReadResponse(a.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.Close {
		t.Fatalf("%v, close %v", err, resp.Close)
	}
	return resp.Header.Get("X-Generation"), string(text)
}

// A queue that nobody empties must not lose or close a connection, and those
// that find no room in it are served on.
func TestHandoff_FullQueueKeepsServing(t *testing.T) {
	f := newFleet(t, echoing)
	const n = 200
	var askers []asker
	for _, c := range dialN(t, f.addr(), n) {
		a := newAsker(c)
		a.send(t, get)
		a.answer(t)
		askers = append(askers, a)
	}
	old := f.cur
	f.cur = f.start()
	recv, send, err := handoff.NewPair()
	if err != nil {
		t.Fatal(err)
	}
	rc, err := send.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := rc.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 1) }); err != nil {
		t.Fatal(err)
	}
	stalled, err := handoff.NewReceiver(recv)
	if err != nil {
		t.Fatal(err)
	}
	defer stalled.Close()
	full, err := handoff.NewSender(send)
	if err != nil {
		t.Fatal(err)
	}
	old.p.orderDrain(order{from: time.Now(), queue: full})

	generations := make(chan string, n)
	var wg sync.WaitGroup
	for i, a := range askers {
		wg.Go(func() {
			want := fmt.Sprint(i)
			a.send(t, post("/", fmt.Sprintf("Content-Length: %d\r\n", len(want)), want))
			g, got := a.answer(t)
			if got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			generations <- g
		})
	}
	for range n / 2 {
		if g := <-generations; g != "1" {
			t.Errorf("answered by generation %s while the queue is full", g)
		}
	}
	// Now the queue moves again.
	next := f.cur.sender(t)
	defer next.Close()
	testwait.Until(t, "the old worker is done", func() bool {
		if _, err := handoff.Move(next, stalled); err != nil && !errors.Is(err, handoff.ErrFull) {
			t.Fatal(err)
		}
		return len(old.done) > 0
	})
	await(t, old.done)
	if _, err := handoff.Move(next, stalled); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	for _, a := range askers {
		a.send(t, get)
		if g, _ := a.answer(t); g != "2" {
			t.Errorf("answered by generation %s in the end", g)
		}
	}
}

func TestHandoff_RequestsInTheMiddle(t *testing.T) {
	entered, gate := make(chan struct{}), make(chan struct{})
	f := newFleet(t, func(generation int) *http.Server {
		srv := echoing(generation)
		next := srv.Handler
		srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				entered <- struct{}{}
				<-gate
			}
			next.ServeHTTP(w, r)
		})
		return srv
	})
	var as []asker
	for _, c := range dialN(t, f.addr(), 4) {
		as = append(as, newAsker(c))
	}
	slow, half, lines, behind := as[0], as[1], as[2], as[3]
	slow.send(t, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
	<-entered
	half.send(t, "POST / HTTP/1.1\r\nHost: x\r\nContent-Le")
	// An old client that ends a body with an empty line too many.
	lines.send(t, post("/", "Content-Length: 1\r\n", "x")+"\r\n")
	lines.answer(t)
	// A request behind one that is being answered goes to the next generation.
	behind.send(t, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
	<-entered
	behind.send(t, post("/", "Content-Length: 6\r\n", "behind"))
	testwait.Until(t, "all connections are read from", func() bool { return f.cur.p.servers[0].count() == 4 })

	old := f.cur
	f.cur = f.start()
	old.p.orderDrain(order{from: time.Now(), queue: f.cur.sender(t)})
	testwait.Until(t, "the idle connection has moved", func() bool { return f.cur.p.servers[0].count() >= 1 })
	half.send(t, "ngth: 4\r\n\r\nhalf")
	if g, body := half.answer(t); g != "1" || body != "half" {
		t.Errorf("half a head: answered by generation %s with %q", g, body)
	}
	half.send(t, get)
	if g, _ := half.answer(t); g != "2" {
		t.Errorf("behind half a head: answered by generation %s", g)
	}
	lines.send(t, "\r\n"+get)
	if g, _ := lines.answer(t); g != "2" {
		t.Errorf("empty lines: answered by generation %s", g)
	}
	close(gate)
	for name, a := range map[string]asker{"slow": slow, "behind": behind} {
		if g, _ := a.answer(t); g != "1" {
			t.Errorf("%s: answered by generation %s", name, g)
		}
	}
	if g, body := behind.answer(t); g != "2" || body != "behind" {
		t.Errorf("behind: answered by generation %s with %q", g, body)
	}
	await(t, old.done)
}

// The whole of net/http's behaviour holds for connections that have moved.
func TestHandoff_RemoteAddressAndCancellation(t *testing.T) {
	ended := make(chan struct{})
	f := newFleet(t, func(int) *http.Server {
		return &http.Server{
			ReadHeaderTimeout: time.Second, // must not end idle connections that have moved
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/wait" {
					<-r.Context().Done()
					close(ended)
					return
				}
				_, _ = io.WriteString(w, r.RemoteAddr)
			}),
		}
	})
	a := newAsker(dialN(t, f.addr(), 1)[0])
	a.send(t, get)
	_, before := a.answer(t)
	f.upgrade()
	<-time.After(1500 * time.Millisecond) // longer than the timeout
	a.send(t, get)
	if _, after := a.answer(t); after != before || after != a.LocalAddr().String() {
		t.Errorf("remote address %q became %q", before, after)
	}
	a.send(t, "GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
	_ = a.Close()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the request's context has not ended with the connection")
	}
}

func TestHandoff_FallsBackWhenTheQueueIsGone(t *testing.T) {
	f := newFleet(t, echoing)
	c := dialN(t, f.addr(), 1)[0]
	br := bufio.NewReader(c)
	ask := func() *http.Response {
		t.Helper()
		if _, err := io.WriteString(c, get); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp
	}
	ask()
	next := f.start()
	s := next.sender(t)
	old := f.cur
	f.cur = next
	_ = next.send.Close()
	_ = s.Close() // every send fails from now on
	old.p.orderDrain(order{from: time.Now(), queue: s})
	testwait.Until(t, "the old worker has noticed", func() bool {
		old.p.mu.Lock()
		defer old.p.mu.Unlock()
		return len(old.p.servers) == 1 && old.p.servers[0].mode.Load() == modeClosing
	})
	if resp := ask(); !resp.Close {
		t.Error("the answer does not say that the connection ends")
	}
	await(t, old.done)
}

// BenchmarkHandoff moves idle connections from one worker to the next.
func BenchmarkHandoff(b *testing.B) {
	for _, n := range []int{1000, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var limit unix.Rlimit
			if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
				b.Fatal(err)
			}
			if need := uint64(3*n + 500); limit.Max < need {
				b.Fatalf("needs %d descriptors, the hard limit is %d", need, limit.Max)
			}
			f := newFleet(b, echoing)
			var askers []asker
			for range n {
				c, err := net.Dial("tcp", f.addr())
				if err != nil {
					b.Fatal(err)
				}
				defer c.Close()
				a := newAsker(c)
				a.send(b, get)
				a.answer(b)
				askers = append(askers, a)
			}
			runtime.GC()
			b.ResetTimer()
			for range b.N {
				f.upgrade()
			}
			b.StopTimer()
			want := fmt.Sprint(f.gen)
			for _, a := range askers {
				a.send(b, get)
				if g, _ := a.answer(b); g != want {
					b.Fatalf("answered by generation %s, want %s", g, want)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/upgrade")
		})
	}
}
