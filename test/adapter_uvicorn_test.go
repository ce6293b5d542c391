//go:build linux

package test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"gapless/internal/load"
)

// asgi echoes. It is no framework's, so that what is seen is uvicorn's.
const asgi = `
import asyncio, os
from urllib.parse import parse_qs

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})
    query = parse_qs(scope["query_string"].decode())
    body, more = b"", True
    while more and "early" not in query:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await asyncio.sleep(float(query.get("ms", ["0"])[0]) / 1000)
    body = body or b"ok"
    headers = [(b"content-length", b"%d" % len(body)), (b"x-gapless-generation", os.environ["GAPLESS_GENERATION"].encode())]
    headers += [h for h in scope["headers"] if h[0] == b"x-request-id"]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
`

// uvicornServer runs uvicorn as its user would, with a keep-alive timeout that is no reason to close anything here.
func uvicornServer(t *testing.T, o options, args ...string) *server {
	t.Helper()
	path := installed(t, "uvicorn")
	s := prepare(t)
	writeFile(t, filepath.Join(s.dir, "main.py"), asgi)
	o.command = append([]string{path, "main:app", "--fd", "{fd}", "--log-level", "warning", "--no-access-log", "--timeout-keep-alive", "60"}, args...)
	s.run(o)
	s.await("uvicorn is ready", msg("Application startup complete"))
	return s
}

// pairs are the event loops and parsers of uvicorn.
var pairs = []struct{ loop, http string }{{"asyncio", "h11"}, {"uvloop", "httptools"}}

// uvicornStreams send as clients do: kept-alive POSTs, some in pieces, some pipelined.
func uvicornStreams(rate float64) []load.Stream {
	return []load.Stream{
		{Connections: keepAliveConnections, Rate: rate, Method: http.MethodPost, Path: "/", Body: 200, Echo: true},
		{Name: "in pieces", Connections: 16, Rate: rate / 4, Method: http.MethodPost, Path: "/", Body: 500, Split: 1, Echo: true},
		{Name: "pipelined", Connections: 16, Rate: rate / 8, Method: http.MethodPost, Path: "/", Body: 100, Pipeline: 1, Echo: true},
	}
}

// uvicorn, with its command line as it was, loses no request and closes no connection: over upgrades and over reloads, with
// each of its event loops and parsers, near and far.
func TestUvicorn_UpgradesAndReloadsAreNotNoticed(t *testing.T) {
	for _, pair := range pairs {
		for _, rtt := range []time.Duration{0, 20 * time.Millisecond} {
			t.Run(fmt.Sprintf("%s, %s, %v away", pair.loop, pair.http, rtt), func(t *testing.T) {
				s := uvicornServer(t, options{}, "--loop", pair.loop, "--http", pair.http)
				p := plan{addr: s.addr, streams: uvicornStreams(100), rtt: rtt, every: 600 * time.Millisecond, tail: time.Second}
				n := counted(2, 10)
				r := p.under(t, 2*n, func(i int) {
					if i%2 == 0 {
						s.upgrade(i/2 + 2)
					} else {
						s.verb("reload").demand(t, 0)
					}
				})
				r.untouched(t, p)
				s.settled(n+1, 2)
				if e := s.out.find(msg(notInForce)); len(e) > 0 {
					t.Errorf("no adapter in force: %s", e[0].Reason)
				}
				s.stop()
			})
		}
	}
}

// The control: what the adapter is for.
func TestUvicorn_WithoutTheAdapterConnectionsAreClosed(t *testing.T) {
	s := uvicornServer(t, options{flags: []string{"--adapter", "off"}})
	p := plan{addr: s.addr, streams: uvicornStreams(100), rtt: 20 * time.Millisecond, every: 600 * time.Millisecond, tail: time.Second}
	lost, closed, generation := 0, 0, 1
	for range 5 { // some lose nothing, by luck
		r := p.under(t, 2, func(int) { generation++; s.upgrade(generation) })
		lost, closed = lost+r.lost(), closed+r.closed(p)
		if lost > 0 && closed > 0 {
			break
		}
	}
	if lost == 0 || closed == 0 {
		t.Errorf("%d requests lost, %d connections closed: neither may be 0", lost, closed)
	}
	t.Logf("%d requests lost, %d connections closed", lost, closed)
	s.stop()
}
