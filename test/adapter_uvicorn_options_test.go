//go:build linux

package test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"gapless/internal/load"
)

// keptAlive is one connection to an echo, for requests one after the other.
type keptAlive struct {
	t testing.TB
	c net.Conn
	r *bufio.Reader
}

func keepAlive(t testing.TB, network, addr string) *keptAlive {
	t.Helper()
	c, err := net.DialTimeout(network, addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(2 * patience))
	return &keptAlive{t, c, bufio.NewReader(c)}
}

// ask demands an answer of a generation.
func (k *keptAlive) ask(generation int) {
	k.t.Helper()
	if _, err := io.WriteString(k.c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		k.t.Fatal(err)
	}
	resp, err := http.ReadResponse(k.r, nil)
	if err != nil {
		k.t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		k.t.Fatal(err)
	}
	if got := resp.Header.Get("X-Gapless-Generation"); resp.StatusCode != http.StatusOK || got != fmt.Sprint(generation) {
		k.t.Errorf("status %d of generation %q, want 200 of %d", resp.StatusCode, got, generation)
	}
}

// Connections over a unix socket outlive the workers as well.
func TestUvicorn_UnixSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(publicDir(t), "s")
	s := uvicornServer(t, options{flags: []string{"--listen", "unix:" + path}})
	k := keepAlive(t, "unix", path)
	k.ask(1)
	for generation := 2; generation <= 3; generation++ {
		s.upgrade(generation)
		s.settled(generation, 2)
		k.ask(generation)
	}
	s.adapterInForce()
	s.stop()
}

// A program that serves two sockets with one uvicorn gets each connection back at the one that it came from.
func TestUvicorn_SeveralSockets(t *testing.T) {
	t.Parallel()
	python := pythonOf(t)
	s := prepare(t)
	path := filepath.Join(publicDir(t), "s")
	s.addr = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	writeFile(t, filepath.Join(s.dir, "main.py"), asgi)
	writeFile(t, filepath.Join(s.dir, "serve.py"), "import socket, uvicorn\n"+
		"server = uvicorn.Server(uvicorn.Config('main:app', timeout_keep_alive=60, log_level='warning'))\n"+
		"server.run(sockets=[socket.socket(fileno=3), socket.socket(fileno=4)])\n")
	s.run(options{flags: []string{"--listen", "web=" + s.addr, "--listen", "local=unix:" + path}, command: []string{python, "serve.py"}})
	s.await("it serves", msg("Application startup complete"))
	tcp, local := keepAlive(t, "tcp", s.addr), keepAlive(t, "unix", path)
	for generation := 1; generation <= 3; generation++ {
		if generation > 1 {
			s.upgrade(generation)
			s.settled(generation, 2)
		}
		tcp.ask(generation)
		local.ask(generation)
	}
	s.adapterInForce()
	s.stop()
}

// Options of uvicorn mean what they mean without the adapter.
func TestUvicorn_OptionsKeepTheirMeaning(t *testing.T) {
	t.Run("those that could be in the way", func(t *testing.T) {
		t.Parallel()
		s := uvicornServer(t, options{}, "--proxy-headers", "--root-path", "/x", "--lifespan", "off", "--ws", "wsproto", "--limit-concurrency", "1000")
		k := keepAlive(t, "tcp", s.addr)
		k.ask(1)
		s.upgrade(2)
		s.settled(2, 2)
		k.ask(2)
		s.demandAdapters(2, 2, "uvicorn ")
		s.stop()
	})
	t.Run("--timeout-keep-alive", func(t *testing.T) {
		t.Parallel()
		s := uvicornServer(t, options{}, "--timeout-keep-alive", "5")
		k := keepAlive(t, "tcp", s.addr)
		k.ask(1)
		s.upgrade(2)
		moved := time.Now()
		_, err := k.r.ReadByte()
		// It counts anew from the move: never less than was promised.
		if took := time.Since(moved); !errors.Is(err, io.EOF) || took > 20*time.Second {
			t.Errorf("a connection that is idle ended with %v after %v", err, took)
		}
		s.settled(2, 2)
		s.stop()
	})
	t.Run("--limit-concurrency", func(t *testing.T) {
		// Four workers answer three connections each; one that takes more would say 503.
		t.Parallel()
		s := uvicornServer(t, options{flags: []string{"-w", "4"}}, "--limit-concurrency", "4")
		var all []*keptAlive
		for range 8 {
			// A connection in the worker that has the fewest: it is looked for until one answers with 200.
			all = append(all, roomFor(t, s.addr))
		}
		for generation := 2; generation <= 3; generation++ {
			s.upgrade(generation)
			s.settled(generation, 4)
			for _, k := range all {
				k.ask(generation)
			}
		}
		s.stop()
	})
	t.Run("--limit-max-requests", func(t *testing.T) {
		t.Parallel()
		s := uvicornServer(t, options{}, "--limit-max-requests", "60")
		p := plan{addr: s.addr, tail: 5 * time.Second, streams: []load.Stream{{Kind: load.NewConn, Connections: 4, Rate: 40, Method: http.MethodPost, Body: 50}}}
		r := p.under(t, 1, func(int) { s.await("a worker ends by itself", msg("Worker died; it is replaced")) })
		// What uvicorn has accepted in that moment and not read it closes, whoever runs it.
		if ended := len(s.out.find(msg("Worker died; it is replaced"))); r.lost() > ended || r[0].OK == 0 {
			t.Errorf("%d requests lost to %d ends\n%s", r.lost(), ended, r)
		}
		s.stop()
	})
}

// roomFor returns a connection whose worker answers it.
func roomFor(t *testing.T, addr string) *keptAlive {
	t.Helper()
	for range 200 {
		k := keepAlive(t, "tcp", addr)
		if _, err := io.WriteString(k.c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(k.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return k
		}
		_ = k.c.Close()
	}
	t.Fatal("every worker is full")
	return nil
}
