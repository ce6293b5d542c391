//go:build linux

package test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// A worker that is busy while several generations come and go has still somebody to give its connections to: what it was
// told of is there until it has ended.
func TestUpgrade_ConnectionOutlivesTheGenerationItIsGivenTo(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"-w", "1"}})
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	br := bufio.NewReader(c)
	send := func(text string) {
		t.Helper()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
	}
	answer := func(generation string) {
		t.Helper()
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("generation %s does not answer: %v", generation, err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		if g := resp.Header.Get("X-Gapless-Generation"); g != generation || resp.Close {
			t.Errorf("generation %s answers, want %s; the connection ends: %v", g, generation, resp.Close)
		}
	}
	send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf ")
	s.get("/").generation(1) // of a queue that is served in order, this one comes later
	for g := 2; g <= 4; g++ {
		s.upgrade(g)
		if g > 2 {
			eventually(t, patience, "the generation before is gone", func() bool { return len(s.workers(g-1)) == 0 })
		}
	}
	send("more.")
	answer("1")
	eventually(t, patience, "generation 1 is gone", func() bool { return len(s.workers(1)) == 0 })
	send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	answer("4")
	s.stop()
}
