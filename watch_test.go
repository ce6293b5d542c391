package gapless

import (
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// A kick leaves a deadline in the past behind. What has arrived must be found all the same: it is a request.
func TestConn_TryReadBehindAKick(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c, err := newConn(newServer(noEnv(t), &http.Server{}, "web", false), nc, false)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()

	woken := make(chan error, 1)
	go func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, err := c.wait(c.one[:])
		woken <- err
	}()
	for reading := false; !reading; {
		c.mu.Lock()
		reading = c.reading
		c.mu.Unlock()
	}
	if !c.kick() {
		t.Fatal("a connection between two requests was not kicked")
	}
	if err := <-woken; err != nil {
		t.Fatalf("a kick is no error, not %v", err)
	}
	if _, err := io.WriteString(client, "GET"); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for limit := time.Now().Add(10 * time.Second); ; {
		switch n, err := c.tryRead(c.one[:]); {
		case n > 0:
			return
		case err != nil:
			t.Fatal(err)
		case time.Now().After(limit):
			t.Fatal("what the client sent was not found")
		}
	}
}

// The watch for the client's end begins late, and must begin.
func TestServe_ClientGoneDuringARequest(t *testing.T) {
	for _, timeout := range []time.Duration{0, time.Minute} {
		t.Run("ReadTimeout "+timeout.String(), func(t *testing.T) {
			began, gone := make(chan error), make(chan error)
			p := noEnv(t)
			addr, done := serveOn(t, p, "web", &http.Server{ReadTimeout: timeout, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/" {
					close(began)
					<-r.Context().Done()
					close(gone)
				}
			})})
			client, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			// Not the first request: the timer of an earlier one must not mislead.
			if _, err := io.WriteString(client, "GET /first HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			await(t, began)
			_ = client.Close()
			await(t, gone)
			p.orderStop()
			await(t, done)
		})
	}
}
