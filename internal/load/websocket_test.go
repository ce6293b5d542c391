package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// pinged is a server of WebSockets that does something to every seventh ping, and counts.
type pinged struct {
	act   string // "serve", "close frame", "cut", "refuse"
	pings atomic.Int64
	did   atomic.Int64
	open  atomic.Int64
}

func (p *pinged) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if p.act == "refuse" {
		p.did.Add(1)
		http.Error(w, "no WebSocket here", http.StatusNotFound)
		return
	}
	p.open.Add(1)
	var c *websocket.Conn
	ready := make(chan struct{})
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{OnPingReceived: func(context.Context, []byte) bool {
		<-ready
		if n := p.pings.Add(1); n%7 != 0 || p.act == "serve" {
			return true
		}
		p.did.Add(1)
		if p.act == "cut" {
			go c.CloseNow()
		} else {
			go c.Close(websocket.StatusServiceRestart, "")
		} // both wait for the reader, which is what calls this
		return false
	}})
	close(ready)
	if err != nil {
		return
	}
	for {
		if _, _, err := c.Read(r.Context()); err != nil {
			return
		}
	}
}

func TestRun_WebSocket(t *testing.T) {
	for _, act := range []string{"serve", "close frame", "cut", "refuse"} {
		t.Run(act, func(t *testing.T) {
			p := &pinged{act: act}
			srv := httptest.NewServer(p)
			defer srv.Close()
			var mu sync.Mutex
			closed := 0
			c := quick(strings.TrimPrefix(srv.URL, "http://"), Stream{Kind: WebSocket, Connections: 4, Rate: 200, Path: "/ws"})
			c.Events = func(e Event) {
				mu.Lock()
				defer mu.Unlock()
				if e.Kind == ClosedAnnounced {
					closed++
				}
			}
			r := run(t, c)
			did, pings, open := int(p.did.Load()), int(p.pings.Load()), int(p.open.Load())
			want := Report{OK: pings - did + open, Drops: Drops{}}
			if act == "refuse" {
				want.OK = 0
			}
			switch act {
			case "close frame":
				want.Crossed, want.ClosedAnnounced = did, 0 // each meets the ping that caused it
			case "cut":
				want.Drops[EOF] = did
			case "refuse":
				want.Drops[Status] = did
			}
			if act != "serve" && did == 0 || act != "refuse" && pings < 40 {
				t.Fatalf("%d pings, the server did it %d times", pings, did)
			}
			if r.OK != want.OK || r.Crossed != want.Crossed || r.Drops.Total() != want.Drops.Total() || r.Drops[Status] != want.Drops[Status] || r.ClosedIdle != 0 {
				t.Errorf("ok %d, crossed %d, dropped %v; the server says %+v\n%s", r.OK, r.Crossed, r.Drops, want, &r)
			}
			if act == "close frame" && (r.ClosedAnnounced != did || closed != did) {
				t.Errorf("%d announced ends, %d told of; the server says %d", r.ClosedAnnounced, closed, did)
			}
		})
	}
}

func TestFrame_IsReadAsWritten(t *testing.T) {
	for _, size := range []int{0, 1, 125} {
		payload := bytes.Repeat([]byte("x"), size)
		f := frame(opPing, payload, 0)
		f[1] &^= frameMask // what a server sends has no mask, and here the mask is zero
		f = append(f[:2], f[6:]...)
		op, got, err := readFrame(bufio.NewReader(bytes.NewReader(f)))
		if err != nil || op != opPing || !bytes.Equal(got, payload) {
			t.Errorf("%d bytes: %d %q %v", size, op, got, err)
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	for _, seed := range []string{"", "\x8a\x00", "\x89\x02hi", "\x82\x7e\x00\x03abc", "\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff", "\x88\x82\x00\x00\x00\x00ab", "\x02\x01"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		br := bufio.NewReader(bytes.NewReader(text))
		for {
			op, payload, err := readFrame(br)
			if errors.Is(err, io.EOF) && br.Buffered() > 0 {
				t.Error("an end before the end")
			}
			if err != nil {
				return
			}
			if op > opPong || len(payload) > maxControl {
				t.Errorf("frame %d with %d bytes", op, len(payload))
			}
		}
	})
}

// What is told as it happens adds up to the report.
func TestRun_EventsAddUp(t *testing.T) {
	srv := newBadServer(t, func(conn, request int) action {
		switch {
		case request < 0:
			return serve
		case conn%3 == 0 && request == 4:
			return hangUp
		case conn%3 == 1 && request == 3:
			return closeIdle
		case request == 6:
			return closeAnnounced
		}
		return serve
	})
	var mu sync.Mutex
	told := map[EventKind]int{}
	ports := map[int]bool{}
	c := quick(srv.l.Addr().String(), Stream{Name: "s", Connections: 4, Rate: 200, Method: http.MethodPatch, Payload: []byte("{}"), Echo: true})
	c.Events = func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		told[e.Kind]++
		ports[e.Port] = true
		if e.Stream != "s" || e.Port == 0 || e.Seen.Before(e.At) || e.Connected.IsZero() || (e.Kind == Dropped) != (e.Class != "") || (e.Kind == Answered) != (e.Generation != "") {
			t.Errorf("told of %+v", e)
		}
	}
	r := run(t, c)
	if told[Answered] != r.OK || told[Dropped] != r.Drops.Total() || told[ClosedIdle] != r.ClosedIdle || told[ClosedAnnounced] != r.ClosedAnnounced {
		t.Errorf("told of %v\n%s", told, &r)
	}
	if r.Drops[EOF] < srv.count(hangUp) || r.ClosedAnnounced != srv.count(closeAnnounced) || r.ClosedAnnounced == 0 || len(ports) != r.Connects {
		t.Errorf("%d announced, the server says %d; %d ports of %d connections\n%s", r.ClosedAnnounced, srv.count(closeAnnounced), len(ports), r.Connects, &r)
	}
}

// A generator that is stopped while it lags behind its schedule says how far.
func TestSlot_Due(t *testing.T) {
	now := time.Now()
	s := &slot{stream: &Stream{Connections: 1, Rate: 10}, start: now.Add(-time.Second)}
	for _, tt := range []struct{ k, n, want int }{{0, 100, 9}, {9, 100, 0}, {5, 100, 4}, {50, 100, 0}, {0, 3, 3}} {
		if got := s.due(now, tt.k, tt.n); got != tt.want {
			t.Errorf("due(%d, %d) = %d, want %d", tt.k, tt.n, got, tt.want)
		}
	}
}
