//go:build linux

package test

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gapless/internal/load"
)

// slowImport is how long the slow releases take to load, which the test must be able to tell from the server's own start.
const slowImport = 1500 * time.Millisecond

// release is a version of an application whose loading takes its time, or fails.
type release struct{ good, slow, broken string }

var (
	pythonRelease = release{wsgi, "import time\ntime.sleep(1.5)\n" + wsgi, "raise RuntimeError('the database is missing')\n"}
	asgiRelease   = release{fastAPI, "import time\ntime.sleep(1.5)\n" + fastAPI, "raise RuntimeError('the database is missing')\n"}
	rackRelease   = release{rack, "sleep 1.5\n" + rack, "raise 'the database is missing'\n"}
)

// loaders are servers by how they load their application.
var loaders = []struct {
	name    string
	file    string
	release release
	flags   []string
	env     []string
	command []string
}{
	// The first ones are tested always, the others in a soak.
	{"gunicorn", "main.py", pythonRelease, nil, nil, []string{"gunicorn", "main:app", "--log-level", "warning"}},
	{"gunicorn, one queue", "main.py", pythonRelease, []string{"--accept", "shared"}, nil, []string{"gunicorn", "main:app", "--log-level", "warning"}},
	{"gunicorn as a shell's child", "main.py", pythonRelease, nil, nil, []string{"sh", "-c", "gunicorn -b fd://3 main:app; exit 1"}},
	{"gunicorn, uvicorn's worker, no adapter", "main.py", asgiRelease, []string{"--adapter", "off"}, []string{"E2E_STARTUP=0"}, []string{"gunicorn", "-k", "uvicorn.workers.UvicornWorker", "main:app"}},
	{"puma", "config.ru", rackRelease, nil, nil, []string{"puma", "-q", "-b", "tcp://{addr}", "-w", "0", "config.ru"}},
	{"puma with a process of its own", "config.ru", rackRelease, []string{"--start-timeout", slower(5 * time.Second).String()}, nil,
		[]string{"puma", "-q", "-b", "tcp://{addr}", "-w", "1", "config.ru"}},
	{"gunicorn --preload", "main.py", pythonRelease, nil, nil, []string{"gunicorn", "--preload", "main:app"}},
	{"gunicorn gthread", "main.py", pythonRelease, nil, nil, []string{"gunicorn", "-k", "gthread", "--threads", "4", "main:app"}},
	{"gunicorn by a shell", "main.py", pythonRelease, nil, nil, []string{"sh", "-c", "exec gunicorn main:app"}},
	{"gunicorn, uvicorn's worker", "main.py", asgiRelease, nil, []string{"E2E_STARTUP=0"}, []string{"gunicorn", "-k", "uvicorn.workers.UvicornWorker", "main:app"}},
}

// A release whose application cannot be loaded never takes over, and one that takes its time is not met before it is done,
// whatever the server says of itself.
func TestReady_WhenTheApplicationIsLoaded(t *testing.T) {
	for _, tt := range loaders[:counted(5, len(loaders))] {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := prepare(t)
			app := filepath.Join(s.dir, tt.file)
			writeFile(t, app, tt.release.slow)
			s.addr = "127.0.0.1:" + strconv.Itoa(freePort(t))
			command := append([]string{installed(t, tt.command[0])}, tt.command[1:]...)
			for i := range command {
				command[i] = strings.ReplaceAll(command[i], "{addr}", s.addr)
			}
			s.run(options{flags: append([]string{"-w", "2", "--listen", s.addr}, tt.flags...), command: command, env: tt.env})
			first := s.await("a worker is ready", msg("Worker is ready"))
			if first.Took < slowImport.Seconds() {
				t.Errorf("ready after %v s (%q), although its application takes %v to load", first.Took, first.Reason, slowImport)
			}
			s.await("it serves", msg("Application startup complete"))
			s.get("/").generation(1)

			p := plan{addr: s.addr, streams: []load.Stream{{Kind: load.NewConn, Connections: 4, Rate: 20, Method: http.MethodPost, Body: 50}}, tail: time.Second}
			r := p.under(t, 1, func(int) {
				writeFile(t, app, tt.release.broken)
				s.refused(2)
				s.get("/").generation(1)
				writeFile(t, app, tt.release.slow)
				s.upgrade(3)
				s.get("/").generation(3)
				writeFile(t, app, tt.release.good)
				s.upgrade(4)
			})
			r.noneLost(t)
			// Nobody waited for as long as an application takes to load.
			if limit := slower(slowImport / 2); r[0].Latency.Max > limit {
				t.Errorf("a request took %v, more than %v\n%s", r[0].Latency.Max, limit, r)
			}
			s.stop()
		})
	}
}

// What is true at an upgrade is true at the first start, at a reload and for a worker that is replaced.
func TestReady_BrokenApplicationAtAnyStart(t *testing.T) {
	installed(t, "gunicorn")
	t.Run("the first start", func(t *testing.T) {
		t.Parallel()
		s := prepare(t)
		writeFile(t, filepath.Join(s.dir, "main.py"), pythonRelease.broken)
		s.run(options{command: []string{"gunicorn", "main:app"}})
		s.exits(1)
		if e := s.out.find(msg("Worker is ready")); len(e) > 0 {
			t.Errorf("%d workers were ready", len(e))
		}
	})
	t.Run("a reload", func(t *testing.T) {
		t.Parallel()
		s := prepare(t)
		app := filepath.Join(s.dir, "main.py")
		writeFile(t, app, pythonRelease.good)
		s.run(options{command: []string{"gunicorn", "main:app"}})
		s.await("it serves", msg("Application startup complete"))
		writeFile(t, app, pythonRelease.broken)
		ready := len(s.out.find(msg("Worker is ready")))
		s.verb("reload").demand(t, 1)
		s.get("/").generation(1)
		if n := len(s.out.find(msg("Worker is ready"))); n != ready {
			t.Errorf("%d workers became ready in a reload of a broken application", n-ready)
		}
		s.stop()
	})
	t.Run("a worker that is replaced", func(t *testing.T) {
		t.Parallel()
		s := prepare(t)
		app := filepath.Join(s.dir, "main.py")
		writeFile(t, app, pythonRelease.good)
		s.run(options{command: []string{"gunicorn", "main:app"}})
		s.await("it serves", msg("Application startup complete"))
		writeFile(t, app, pythonRelease.broken)
		ready := len(s.out.find(msg("Worker is ready")))
		victim := s.out.find(msg("Worker is ready"))[0].PID
		if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		s.await("its successor fails", msg("Worker did not become ready; trying again"))
		if n := len(s.out.find(msg("Worker is ready"))); n != ready {
			t.Errorf("%d workers became ready with a broken application", n-ready)
		}
		s.get("/").generation(1)
		writeFile(t, app, pythonRelease.good)
		eventually(t, patience, "there are two workers that are ready again", func() bool { return len(s.out.find(msg("Worker is ready"))) == ready+1 })
		s.stop()
	})
}

// A process that handles one connection at a time, and shares its queue with others that are as busy, is never seen to wait.
// It counts as ready all the same.
func TestReady_BusyFromTheStart(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	writeFile(t, filepath.Join(s.dir, "main.py"), "import time\n"+strings.Replace(wsgi, "start_response(", "time.sleep(0.05)\n    start_response(", 1))
	s.run(options{flags: []string{"--accept", "shared"}, command: []string{installed(t, "gunicorn"), "main:app", "--log-level", "warning"}})
	s.await("it serves", msg("Application startup complete"))
	ctx, cancel := context.WithCancel(t.Context())
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	var busy sync.WaitGroup
	for range 12 {
		busy.Go(func() {
			for ctx.Err() == nil {
				r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.addr, nil)
				if err != nil {
					return
				}
				if resp, err := client.Do(r); err == nil { // the one that is killed loses its own
					_ = resp.Body.Close()
				}
			}
		})
	}
	ready := s.out.find(msg("Worker is ready"))
	if err := syscall.Kill(ready[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "its successor is ready", func() bool { return len(s.out.find(msg("Worker is ready"))) > len(ready) })
	t.Logf("ready because %q", s.out.find(msg("Worker is ready"))[len(ready)].Reason)
	cancel()
	busy.Wait()
	client.CloseIdleConnections()
	s.stop()
}

// A worker that listens at an address of its own is told where it does, however many there are.
func TestReady_ListensElsewhere(t *testing.T) {
	for _, tt := range []struct {
		name, workers string
		command       []string
	}{
		{"python", "1", []string{"{python}", "serve.py", "{port}"}},
		{"several of them", "2", []string{"{python}", "serve.py", "{port}"}},
		{"several of puma", "2", []string{"puma", "-q", "-b", "tcp://127.0.0.1:{port}", "-w", "0", "config.ru"}},
		{"several of node", "2", []string{"node", "serve.js", "{port}"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := prepare(t)
			writeFile(t, filepath.Join(s.dir, "serve.py"), "import http.server, sys\n"+
				"http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), http.server.BaseHTTPRequestHandler).serve_forever()\n")
			writeFile(t, filepath.Join(s.dir, "serve.js"), "require('http').createServer((q, s) => s.end('ok')).listen(+process.argv[2], '127.0.0.1')\n")
			writeFile(t, filepath.Join(s.dir, "config.ru"), rack)
			port := strconv.Itoa(freePort(t))
			command := append([]string(nil), tt.command...)
			for i := range command {
				command[i] = strings.NewReplacer("{python}", pythonOf(t), "{port}", port).Replace(command[i])
			}
			s.run(options{flags: []string{"-w", tt.workers, "--start-timeout", slower(2 * time.Second).String()}, command: command})
			s.exits(1)
			text, err := os.ReadFile(s.out.path)
			if err != nil {
				t.Fatal(err)
			}
			if want := " listens on 127.0.0.1:" + port + " itself and not on the socket that it inherited"; !strings.Contains(string(text), want) {
				t.Errorf("it does not say %q:\n%s", want, text)
			}
		})
	}
}
