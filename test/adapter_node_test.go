//go:build linux

package test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gapless/internal/load"
)

// echoNode is an application as people write it: it knows nothing of gapless and listens on a port. It waits for as long
// as it is asked to.
const echoNode = `
const http = require('http');
const server = http.createServer((req, res) => {
  const body = [];
  req.on('data', (d) => body.push(d));
  req.on('end', () => setTimeout(() => {
    const head = { 'X-Gapless-Generation': process.env.GAPLESS_GENERATION };
    if (req.headers['x-request-id']) head['X-Request-Id'] = req.headers['x-request-id'];
    res.writeHead(200, head);
    res.end(Buffer.concat(body));
  }, Number(new URL(req.url, 'http://x').searchParams.get('ms'))));
}).listen(process.env.PORT || 3000);
server.keepAliveTimeout = 60000; // a slow machine may take longer than node's five seconds to send again
`

// nodeApp runs such an application, with more behind it.
func nodeApp(t *testing.T, o options, more string) *server {
	t.Helper()
	path := installed(t, "node")
	s := prepare(t)
	writeFile(t, filepath.Join(s.dir, "server.js"), echoNode+more)
	if o.command == nil {
		o.command = []string{path, "server.js"}
	}
	s.run(o)
	s.await("node is ready", msg("Application startup complete"))
	return s
}

// nodeStreams send as clients do: kept-alive POSTs, some in pieces, some pipelined, and some to a slow handler.
func nodeStreams(rate float64) []load.Stream {
	return []load.Stream{
		{Connections: keepAliveConnections, Rate: rate, Method: http.MethodPost, Path: "/", Body: 200, Echo: true},
		{Name: "in pieces", Connections: 16, Rate: rate / 4, Method: http.MethodPost, Path: "/", Body: 500, Split: 1, Echo: true},
		{Name: "pipelined", Connections: 16, Rate: rate / 8, Method: http.MethodPost, Path: "/", Body: 100, Pipeline: 1, Echo: true},
		{Name: "slow", Connections: 32, Rate: rate / 8, Method: http.MethodPost, Path: "/?ms=300", Body: 100, Echo: true},
	}
}

// upgradesAndReloads does one after the other.
func upgradesAndReloads(t *testing.T, s *server) func(i int) {
	return func(i int) {
		if i%2 == 0 {
			s.upgrade(i/2 + 2)
		} else {
			s.verb("reload").demand(t, 0)
		}
	}
}

const noAdapter = "No adapter in force: idle connections are closed as the command closes them"

func (s *server) adapterInForce() {
	s.t.Helper()
	if e := s.out.find(msg(noAdapter)); len(e) > 0 {
		s.t.Errorf("no adapter in force: %s", e[0].Reason)
	}
}

// An application for node, unchanged, loses no request and closes no connection: over upgrades and reloads, near and far.
func TestNode_UpgradesAndReloadsAreNotNoticed(t *testing.T) {
	for _, rtt := range []time.Duration{0, 20 * time.Millisecond} {
		t.Run(fmt.Sprintf("%v away", rtt), func(t *testing.T) {
			s := nodeApp(t, options{}, "")
			p := plan{addr: s.addr, streams: nodeStreams(150), rtt: rtt, every: 600 * time.Millisecond, tail: time.Second}
			n := counted(2, 10)
			r := p.under(t, 2*n, upgradesAndReloads(t, s))
			r.untouched(t, p)
			s.settled(n+1, 2)
			s.adapterInForce()
			s.stop()
		})
	}
}

// The control: what the adapter is for.
func TestNode_WithoutTheAdapterConnectionsAreClosed(t *testing.T) {
	s, _ := servePrograms(t)
	s.run(options{flags: []string{"--adapter", "off"}, command: []string{"node", "plain.js"}})
	s.await("node is ready", msg("Application startup complete"))
	p := plan{addr: s.addr, streams: nodeStreams(150), rtt: 20 * time.Millisecond, every: 600 * time.Millisecond, tail: time.Second}
	r := p.under(t, 3, func(i int) { s.upgrade(i + 2) })
	if r.lost() == 0 || r.closed(p) == 0 {
		t.Errorf("%d requests lost, %d connections closed: neither may be 0\n%s", r.lost(), r.closed(p), r)
	}
	t.Logf("%d requests lost, %d connections closed", r.lost(), r.closed(p))
	s.stop()
}

// The handlers that applications have for the signal run, and cut nothing off.
func TestNode_OwnHandlers(t *testing.T) {
	t.Parallel()
	for name, handler := range map[string]string{
		"close":          "server.close(() => console.log('the handler ran'))",
		"close and exit": "server.close(); console.log('the handler ran'); process.exit(0)",
	} {
		t.Run(name, func(t *testing.T) {
			s := nodeApp(t, options{}, "process.on('SIGTERM', () => {"+handler+"});")
			p := plan{addr: s.addr, streams: nodeStreams(100), rtt: 20 * time.Millisecond, every: 600 * time.Millisecond, tail: time.Second}
			n := counted(1, 5)
			r := p.under(t, 2*n, upgradesAndReloads(t, s))
			r.untouched(t, p)
			s.settled(n+1, 2)
			s.stop()
			if got, want := strings.Count(s.out.text(), "the handler ran"), 2*(2*n+1); got != want {
				t.Errorf("%d handlers ran, want %d", got, want)
			}
		})
	}
}

// plainNode is the same application, which takes the inherited socket by itself and ends as most do.
var plainNode = strings.Replace(echoNode, "process.env.PORT || 3000", "{ fd: 3 }", 1) + "process.on('SIGTERM', () => server.close());\n"

// servePrograms runs a command that is another program with each release.
func servePrograms(t *testing.T) (s *server, put func(text string)) {
	t.Helper()
	installed(t, "node")
	s = prepare(t)
	serve := filepath.Join(s.dir, "serve")
	writeFile(t, filepath.Join(s.dir, "plain.js"), plainNode)
	put = func(text string) {
		t.Helper()
		replaceFile(t, serve, func(path string) error { return os.WriteFile(path, []byte(text), 0o755) })
	}
	return s, put
}

const withAdapter = "#!/usr/bin/env node\n" + echoNode

func (s *server) runServe() {
	s.t.Helper()
	s.run(options{command: []string{filepath.Join(s.dir, "serve")}})
	s.await("the first release is ready", msg("Application startup complete"))
}

// Programs for node and in Go hand their connections to each other.
func TestNode_AndGo(t *testing.T) {
	t.Parallel()
	s, put := servePrograms(t)
	inGo := "#!/bin/sh\nexec " + built.gapless + " app\n"
	put(withAdapter)
	s.runServe()
	streams := nodeStreams(150)[:3]
	for i := range streams {
		streams[i].Path = "/echo"
	}
	p := plan{addr: s.addr, streams: streams, rtt: 20 * time.Millisecond, every: 600 * time.Millisecond, tail: time.Second}
	n := counted(3, 10)
	r := p.under(t, n, func(i int) {
		put([]string{inGo, withAdapter}[i%2])
		s.upgrade(i + 2)
	})
	r.untouched(t, p)
	r.answered(t, n+1)
	s.settled(n+1, 2)
	s.stop()
}

// A release without the adapter takes no connections: on the way to it each is answered once more and then closed by
// announcement. On the way back all is as with node alone, and after that as before.
func TestNode_ToAReleaseWithoutItAndBack(t *testing.T) {
	t.Parallel()
	s, put := servePrograms(t)
	put(withAdapter)
	s.runServe()
	// Of requests that are sent together some are lost to whoever closes, as HTTP has it: those are not sent here.
	p := plan{addr: s.addr, streams: nodeStreams(150)[:2], rtt: 20 * time.Millisecond, every: 600 * time.Millisecond, tail: 2 * time.Second}
	put("#!/bin/sh\nexec node plain.js\n")
	r := p.under(t, 1, func(int) { s.upgrade(2) })
	r.noneLost(t)
	r.answered(t, 2)
	s.settled(2, 2)

	put(withAdapter)
	s.upgrade(3)
	r = p.under(t, 1, func(int) { s.upgrade(4) })
	r.untouched(t, p)
	s.settled(4, 2)
	s.stop()
}

// An adapter that cannot be loaded changes nothing but one line of the log.
func TestNode_AdapterThatCannotBeLoaded(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]options{
		"options refused": {command: []string{"/usr/bin/env", "-u", "NODE_OPTIONS", "node", "plain.js"}},
		"no folder":       {command: []string{"node", "plain.js"}, env: []string{"GAPLESS_RUNTIME_DIR=/proc", "TMPDIR=/proc"}},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := servePrograms(t)
			o.flags = []string{"--control", filepath.Join(s.dir, "control")}
			s.run(o)
			s.await("node is ready", msg("Application startup complete"))
			s.get("/").generation(1)
			s.upgrade(2)
			s.get("/").generation(2)
			s.stop()
			if e := s.out.find(msg(noAdapter)); len(e) != 2 { // one for each release
				t.Errorf("%d lines about the adapter, want 2", len(e))
			}
		})
	}
}

// Whoever dies, the others see to it that nothing more is lost than what died with it: a master nothing, and a worker that
// takes connections those that it has.
func TestNode_Deaths(t *testing.T) {
	t.Parallel()
	t.Run("of masters", func(t *testing.T) {
		s := nodeApp(t, options{}, "")
		p := plan{addr: s.addr, streams: nodeStreams(150), rtt: 20 * time.Millisecond, every: 600 * time.Millisecond, tail: time.Second}
		r := p.under(t, 4, func(i int) {
			if i%2 == 0 {
				s.killMaster()
			} else {
				s.upgrade(i/2 + 2)
			}
		})
		r.untouched(t, p)
		s.adapterInForce()
		s.stop()
	})
	t.Run("of a worker that takes connections", func(t *testing.T) {
		s := nodeApp(t, options{}, "")
		p := plan{addr: s.addr, streams: nodeStreams(150), rtt: 20 * time.Millisecond, every: 600 * time.Millisecond, tail: 2 * time.Second}
		r := p.under(t, 1, func(int) {
			s.upgrade(2)
			signal(t, s.worker(2, 0).PID, syscall.SIGKILL)
		})
		connections := 0
		for _, stream := range p.streams {
			connections += stream.Connections
		}
		if n := r.closed(p); n > connections { // none twice; it may have died before it had any
			t.Errorf("%d of %d connections were closed", n, connections)
		}
		r = p.under(t, 1, func(int) { s.upgrade(3) })
		r.untouched(t, p)
		s.settled(3, 2)
		s.stop()
	})
}

// A program that listens on the path of gapless gets its socket, and one kept-alive connection outlives the workers.
func TestNode_UnixSocket(t *testing.T) {
	t.Parallel()
	dir := publicDir(t)
	path := filepath.Join(dir, "s")
	script := "require('http').createServer((req, res) => res.end(process.env.GAPLESS_GENERATION)).listen(process.argv[1]).keepAliveTimeout = 60000"
	s := start(t, options{flags: []string{"--listen", "unix:" + path}, command: []string{installed(t, "node"), "-e", script, path}})
	dials := 0
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		dials++
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr, Timeout: patience}
	ask := func() string {
		res, err := client.Get("http://x/")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	for generation := 1; generation <= 3; generation++ {
		if generation > 1 {
			s.upgrade(generation)
			s.settled(generation, 2)
		}
		if got := ask(); got != strconv.Itoa(generation) {
			t.Errorf("generation %s answered, want %d", got, generation)
		}
	}
	if dials != 1 {
		t.Errorf("%d connections were needed", dials)
	}
	s.adapterInForce()
	s.stop()
}
