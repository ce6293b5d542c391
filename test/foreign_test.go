//go:build linux

package test

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"gapless/internal/load"
	"gapless/internal/load/loadtest"
)

// Other people's servers, as they are.
const (
	fastAPI = `
import asyncio, os
from fastapi import FastAPI, Request, Response

app = FastAPI()

@app.on_event("startup")
async def startup():
    await asyncio.sleep(float(os.environ.get("E2E_STARTUP", "1")))
    app.state.started = True

@app.get("/")
@app.post("/")
async def root(request: Request):
    body = await request.body()
    headers = {"X-Gapless-Generation": os.environ["GAPLESS_GENERATION"]}
    return Response(body or b"ok", status_code=200 if getattr(app.state, "started", False) else 500, headers=headers)
`
	nodeServer = `
const http = require('http');
const server = http.createServer((req, res) => {
  res.setHeader('X-Gapless-Generation', process.env.GAPLESS_GENERATION);
  req.resume();
  req.on('end', () => res.end('ok'));
});
server.listen({fd: 3});
process.on('SIGTERM', () => server.close(() => process.exit(0)));
`
	rack = `
run ->(env) {
  env['rack.input'].read if env['rack.input']
  [200, {'content-type' => 'text/plain', 'x-gapless-generation' => ENV['GAPLESS_GENERATION']}, ['ok']]
}
`
	wsgi = `
import os
def app(environ, start_response):
    environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", "2"), ("X-Gapless-Generation", os.environ["GAPLESS_GENERATION"])])
    return [b"ok"]
`
)

// installed demands a program: where it is missing, what is promised about it has not been tested.
func installed(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s IS NOT INSTALLED, so what is promised about it is not tested: run `make test-deps`", name)
	}
	return path
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// foreign runs somebody else's server.
func foreign(t *testing.T, program string, o options) *server {
	t.Helper()
	path := installed(t, program)
	s := prepare(t)
	switch program {
	case "uvicorn":
		writeFile(t, filepath.Join(s.dir, "main.py"), fastAPI)
		o.command = []string{path, "main:app", "--fd", "{fd}", "--log-level", "warning"}
	case "node":
		writeFile(t, filepath.Join(s.dir, "server.js"), nodeServer)
		o.command = []string{path, "server.js"}
	case "puma":
		port := strconv.Itoa(freePort(t))
		s.addr = "127.0.0.1:" + port
		o.flags = append(o.flags, "--listen", s.addr)
		writeFile(t, filepath.Join(s.dir, "config.ru"), rack)
		o.command = []string{path, "-q", "-e", "production", "-t", "4:4", "-b", "tcp://" + s.addr, "config.ru"}
	case "hypercorn": // by the table of known commands
		writeFile(t, filepath.Join(s.dir, "main.py"), asgi)
		o.command = []string{path, "main:app", "--log-level", "warning"}
	case "gunicorn":
		writeFile(t, filepath.Join(s.dir, "main.py"), wsgi)
		o.command = []string{path, "main:app", "--log-level", "warning"}
	}
	s.run(o)
	s.await(program+" is ready", msg("Application startup complete"))
	return s
}

// New connections are never refused, and never reset before they were accepted, whatever the server.
func TestForeign_NewConnectionsOverUpgrades(t *testing.T) {
	for _, program := range []string{"uvicorn", "node", "gunicorn", "puma", "hypercorn"} {
		t.Run(program, func(t *testing.T) {
			s := foreign(t, program, options{flags: []string{"--accept", "steered"}})
			streams := []load.Stream{
				{Kind: load.NewConn, Connections: 8, Rate: 100, Method: http.MethodPost, Path: "/", Body: 50},
				{Kind: load.Silent, Silence: 100 * time.Millisecond, Connections: 16, Rate: 50},
			}
			if program == "gunicorn" { // its workers take one connection at a time: silent ones would only stand in the queue
				streams = streams[:1]
			}
			p := plan{addr: s.addr, streams: streams, every: time.Second, tail: time.Second}
			n := counted(2, 5)
			r := p.under(t, n, func(i int) { s.upgrade(i + 2) })
			r.noneLost(t)
			r.answered(t, n+1)
			s.settled(n+1, len(s.workers(n+1)))
			s.stop()
		})
	}
}

// A worker is ready after its startup events, not before: uvicorn answers nothing until then.
func TestForeign_ReadyAfterStartupEvents(t *testing.T) {
	t.Parallel()
	s := foreign(t, "uvicorn", options{})
	e := s.await("a worker is ready", msg("Worker is ready"))
	if e.Took < 1 {
		t.Errorf("ready %v s after its start, though its startup event takes 1 s", e.Took)
	}
	if r := s.get("/"); r.status != http.StatusOK {
		t.Errorf("status %d: %s", r.status, r.body)
	}
	s.stop()
}

// The kernel's evidence is found in the children of a worker, and in processes of another user without any privilege
// to look into them.
func TestForeign_ReadinessRights(t *testing.T) {
	tests := []struct {
		name    string
		program string
		flags   []string
	}{
		{"gunicorn, whose children listen", "gunicorn", nil},
		{"uvicorn of another user", "uvicorn", []string{"--user", "65534"}},
		{"gunicorn of another user", "gunicorn", []string{"--user", "65534"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if os.Getuid() != 0 {
				t.Fatal("this needs root: it runs workers as another user")
			}
			setpriv := []string{installed(t, "setpriv"), "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"}
			s := foreign(t, tt.program, options{flags: append(tt.flags, "--start-timeout", "20s"), wrapper: setpriv, env: []string{"E2E_STARTUP=0.1"}})
			e := s.await("a worker is ready", msg("Worker is ready"))
			if e.Reason != "epoll" && e.Reason != "accept" && e.Reason != "poll" && e.Reason != "it said so" {
				t.Errorf("ready because %q", e.Reason)
			}
			s.get("/").generation(1)
			s.upgrade(2)
			s.get("/")
			s.stop()
		})
	}
}

// Requests that were sent together are answered together: no answer waits for the client's acknowledgement of the one
// before, which takes 40 ms.
func TestForeign_PipelinedRequestsAreNotDelayed(t *testing.T) {
	s := foreign(t, "uvicorn", options{flags: []string{"-w", "1"}, env: []string{"E2E_STARTUP=0"}})
	r := loadtest.Run(t, load.Config{Address: s.addr, Duration: 2 * time.Second, LagLimit: lagLimit(), Streams: []load.Stream{
		{Connections: 2, Rate: 40, Pipeline: 1},
	}})
	loadtest.Require(t, r)
	if limit := slower(25 * time.Millisecond); r.Latency.P50 > limit {
		t.Errorf("pipelined requests take %v, more than %v\n%s", r.Latency.P50, limit, &r)
	}
	s.stop()
}

// The control: a careful Go program without gapless, under the same load, must be seen to lose something. If it were
// not, the other tests would prove nothing.
func TestControl_ShutdownAloneIsSeenToLose(t *testing.T) {
	s := start(t, options{flags: []string{"-w", "2"}, command: role("shutdown")})
	streams := postStreams("/", requestsPerSecond())
	p := plan{addr: s.addr, streams: streams, rtt: 20 * time.Millisecond, every: slower(700 * time.Millisecond), tail: slower(time.Second)}
	n := counted(3, 10)
	r := p.under(t, n, func(i int) { s.upgrade(i + 2) })
	if r.lost() == 0 || r.closed(p) == 0 {
		t.Errorf("%d requests lost, %d connections closed: neither may be 0\n%s", r.lost(), r.closed(p), r)
	}
	t.Logf("%d requests lost, %d connections closed", r.lost(), r.closed(p))
	s.stop()
}

// Requests that take seconds are finished by whoever has begun them.
func TestUpgrade_LongRequestsAreFinished(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"-w", "4"}})
	streams := []load.Stream{
		{Name: "2 s", Connections: 60, Rate: 25, Path: "/slow?ms=2000"},
		{Name: "3 s", Connections: 60, Rate: 15, Path: "/slow?ms=3000"},
		{Name: "new", Kind: load.NewConn, Connections: 60, Rate: 20, Path: "/slow?ms=2500"},
	}
	p := plan{addr: s.addr, streams: streams, rtt: 10 * time.Millisecond, every: slower(900 * time.Millisecond), tail: slower(time.Second)}
	n := counted(4, 10)
	r := p.under(t, n, func(i int) { s.upgrade(i + 2) })
	r.untouched(t, p)
	s.settled(n+1, 4)
	s.stop()
}
