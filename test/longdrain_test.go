//go:build linux

package test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// lasting is a connection whose request lasts for as long as the test wants.
type lasting struct {
	t testing.TB
	net.Conn
	br *bufio.Reader
}

// last begins a request that the worker of this generation waits for the rest of.
func (s *server) last(generation int) lasting {
	s.t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	l := lasting{s.t, c, bufio.NewReader(c)}
	l.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf ")
	s.get("/").generation(generation) // of a queue that is served in order, this one comes later
	return l
}

func (l lasting) send(text string) {
	l.t.Helper()
	if _, err := io.WriteString(l, text); err != nil {
		l.t.Fatal(err)
	}
}

// answer demands the generation that answers, and whether it says that the connection ends.
func (l lasting) answer(generation string, ends bool) {
	l.t.Helper()
	resp, err := http.ReadResponse(l.br, nil)
	if err != nil {
		l.t.Fatalf("generation %s does not answer: %v", generation, err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		l.t.Fatal(err)
	}
	if g := resp.Header.Get("X-Gapless-Generation"); g != generation || resp.Close != ends {
		l.t.Errorf("generation %s answers, want %s; the connection ends: %v", g, generation, resp.Close)
	}
}

// A worker that is busy while several generations come and go has still somebody to give its connections to: what it was
// told of is there until it has ended.
func TestUpgrade_ConnectionOutlivesTheGenerationItIsGivenTo(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"-w", "1"}})
	l := s.last(1)
	for g := 2; g <= 4; g++ {
		s.upgrade(g)
		if g > 2 {
			eventually(t, patience, "the generation before is gone", func() bool { return len(s.workers(g-1)) == 0 })
		}
	}
	l.send("more.")
	l.answer("1", false)
	eventually(t, patience, "generation 1 is gone", func() bool { return len(s.workers(1)) == 0 })
	l.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	l.answer("4", false)
	s.stop()
}

// If a release that takes no connections has come meanwhile, it keeps them, and answers.
func TestUpgrade_ConnectionWhoseTakerHasGone(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	path := filepath.Join(s.dir, "release")
	release := func(name string) {
		replaceFile(t, path, func(path string) error {
			return os.WriteFile(path, []byte("#!/bin/sh\nexec env "+roleVariable+"="+name+" "+built.self+"\n"), 0o755)
		})
	}
	release("app-everywhere")
	s.run(options{flags: []string{"-w", "1"}, command: []string{path}})
	s.await("the first worker is ready", msg("Application startup complete"))
	l := s.last(1)
	s.upgrade(2)
	release("shutdown")
	s.upgrade(3)
	eventually(t, patience, "generation 2 is gone", func() bool { return len(s.workers(2)) == 0 })
	l.send("more.")
	l.answer("1", false)
	l.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	l.answer("1", true)
	eventually(t, patience, "generation 1 is gone", func() bool { return len(s.workers(1)) == 0 })
	s.stop()
}
