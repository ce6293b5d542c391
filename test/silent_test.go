//go:build linux

package test

import (
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"gapless/internal/load"
)

// threaded runs somebody else's server, with threads where it knows such a mode: silent connections hold up nobody then.
func threaded(t *testing.T, program string) *server {
	t.Helper()
	if program != "gunicorn" {
		return foreign(t, program, options{env: []string{"E2E_STARTUP=0.1"}})
	}
	s := prepare(t)
	writeFile(t, filepath.Join(s.dir, "main.py"), wsgi)
	s.run(options{command: []string{installed(t, program), "main:app", "--worker-class", "gthread", "--threads", "8", "--log-level", "warning"}})
	s.await(program+" is ready", msg("Application startup complete"))
	return s
}

var foreignServers = []string{"uvicorn", "node", "gunicorn", "puma"}

// A client may connect and take its time before it speaks, whatever happens meanwhile. Servers that close accepted
// connections without a request at their stop signal meet none.
func TestForeign_SilentConnectionsOverUpgrades(t *testing.T) {
	for _, program := range foreignServers {
		t.Run(program, func(t *testing.T) {
			s := threaded(t, program)
			p := plan{addr: s.addr, every: slower(400 * time.Millisecond), tail: time.Second, streams: []load.Stream{
				{Kind: load.Silent, Silence: 200 * time.Millisecond, Connections: 16, Rate: 50},
			}}
			n := counted(3, 10)
			r := p.under(t, n, func(i int) { s.upgrade(i + 2) })
			r.noneLost(t)
			s.settled(n+1, len(s.workers(n+1)))
			s.stop()
		})
	}
}

// A connection per request, 20,000 of them in a soak, while generations come and go.
func TestForeign_NewConnectionPerRequest(t *testing.T) {
	for _, program := range foreignServers {
		t.Run(program, func(t *testing.T) {
			s := threaded(t, program)
			const rate = 250
			upgrades := counted(3, 10)
			requests := counted(500, 20_000)
			p := plan{addr: s.addr, tail: time.Second, streams: []load.Stream{
				{Kind: load.NewConn, Connections: 8, Rate: rate, Method: http.MethodPost, Body: 50},
			}}
			p.every = time.Duration(float64(requests) / rate / float64(upgrades) * float64(time.Second))
			r := p.under(t, upgrades, func(i int) { s.upgrade(i + 2) })
			r.noneLost(t)
			if r[0].OK < requests/2 {
				t.Errorf("only %d requests were made, of %d", r[0].OK, requests)
			}
			s.stop()
		})
	}
}
