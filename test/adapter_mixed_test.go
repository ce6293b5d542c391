//go:build linux

package test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gapless/internal/control"
	"gapless/internal/load"
)

const notInForce = "No adapter in force: idle connections are closed as the command closes them"

// adapters returns what the status says of a generation's workers: the adapter, or why there is none.
func (s *server) adapters(generation int) []string {
	s.t.Helper()
	var all []string
	for _, g := range s.status().Generations {
		for _, w := range g.Workers {
			if g.Generation == generation {
				all = append(all, w.Adapter+w.NoAdapter)
			}
		}
	}
	return all
}

// demandAdapters demands that each worker of a generation says something of a kind about its adapter.
func (s *server) demandAdapters(generation, workers int, part string) {
	s.t.Helper()
	all := s.adapters(generation)
	if len(all) != workers {
		s.t.Errorf("generation %d has %d workers, want %d", generation, len(all), workers)
	}
	for _, a := range all {
		if !strings.Contains(a, part) || (a == "") != (part == "") {
			s.t.Errorf("generation %d: %q, want %q", generation, a, part)
		}
	}
}

// Connections move from uvicorn to a Go program and back: they speak one protocol.
func TestUvicorn_HandsOverToGoAndBack(t *testing.T) {
	t.Parallel()
	python := pythonOf(t)
	for _, pair := range pairs {
		t.Run(pair.loop+", "+pair.http, func(t *testing.T) {
			dir := publicDir(t)
			for _, name := range []string{"go", "python"} {
				if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			writeFile(t, filepath.Join(dir, "python", "main.py"), asgi)
			script := fmt.Sprintf("#!%s\nimport sys, uvicorn\nsys.path.insert(0, '.')\n"+
				"uvicorn.run('main:app', fd=3, loop=%q, http=%q, log_level='warning', access_log=False, timeout_keep_alive=60)\n", python, pair.loop, pair.http)
			if err := os.WriteFile(filepath.Join(dir, "python", "serve"), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Link(built.gapless, filepath.Join(dir, "go", "serve")); err != nil {
				t.Fatal(err)
			}
			current := filepath.Join(dir, "current")
			moveTo := func(name string) {
				replaceFile(t, current, func(path string) error { return os.Symlink(name, path) })
			}
			moveTo("python")
			s := start(t, options{flags: []string{"--chdir", current}, command: []string{"./serve", "app"}})
			streams := []load.Stream{
				{Connections: 48, Rate: 100, Method: http.MethodPost, Path: "/echo", Body: 200, Echo: true},
				{Name: "in pieces", Connections: 16, Rate: 40, Method: http.MethodPost, Path: "/echo", Body: 500, Split: 1, Echo: true},
				{Name: "pipelined", Connections: 16, Rate: 20, Method: http.MethodPost, Path: "/echo", Body: 100, Pipeline: 1, Echo: true},
			}
			p := plan{addr: s.addr, streams: streams, rtt: 10 * time.Millisecond, every: 600 * time.Millisecond, tail: time.Second}
			n := 2 * counted(1, 5)
			r := p.under(t, n, func(i int) {
				moveTo([]string{"go", "python"}[i%2])
				s.upgrade(i + 2)
			})
			r.untouched(t, p)
			s.settled(n+1, 2)
			s.demandAdapters(n+1, 2, "uvicorn ")
			s.stop()
		})
	}
}

// pythonOf returns the interpreter that has uvicorn.
func pythonOf(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(installed(t, "uvicorn"))
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return strings.TrimSpace(strings.TrimPrefix(line, "#!"))
}

// A release with an adapter is followed by one without, and that by one with: what is asked of the first loses nothing, as
// each connection is told which answer is its last.
func TestUvicorn_WithAndWithoutTheAdapter(t *testing.T) {
	t.Parallel()
	config := filepath.Join(publicDir(t), "gapless.yaml")
	writeTo(t, config, "adapter: auto\n")
	s := uvicornServer(t, options{flags: []string{"--config", config}}, "--http", "h11")
	s.demandAdapters(1, 2, "(h11, ")
	// What is pipelined behind the answer that ends a connection is the client's to send again, as HTTP says.
	p := plan{addr: s.addr, streams: uvicornStreams(100)[:2], rtt: 20 * time.Millisecond, every: 600 * time.Millisecond, tail: 2 * time.Second}
	writeTo(t, config, "adapter: \"off\"\n")
	r := p.under(t, 1, func(int) { s.upgrade(2) })
	r.noneLost(t)
	s.settled(2, 2)
	s.demandAdapters(2, 2, "--adapter off")
	if e := s.out.find(msg(notInForce)); len(e) != 1 || e[0].Reason != "--adapter off" {
		t.Errorf("it was told %d times: %+v", len(e), e)
	}
	writeTo(t, config, "adapter: auto\n")
	s.upgrade(3)
	s.settled(3, 2)
	s.demandAdapters(3, 2, "(h11, ")
	r = p.under(t, 1, func(int) { s.upgrade(4) })
	r.untouched(t, p)
	s.stop()
}

// What has no place to be written to, or is not read, changes nothing but one line.
func TestUvicorn_AdapterThatCannotLoad(t *testing.T) {
	for _, tt := range []struct {
		name, reason string
		env          []string
		command      []string
	}{
		{"no folder", "it cannot be put there: no folder for the adapter: ", []string{"TMPDIR=/proc/1", "GAPLESS_RUNTIME_DIR=/proc/1"}, nil},
		{"python -E", "the adapter was not loaded: ", nil, []string{"{python}", "-E", "-m", "uvicorn", "main:app", "--fd", "{fd}"}},
		{"several workers of its own", "several", nil, []string{"env", "GUNICORN_CMD_ARGS=--workers 2", "gunicorn", "-k", "uvicorn.workers.UvicornWorker", "main:app"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			uvicorn := installed(t, "uvicorn")
			s := prepare(t)
			writeFile(t, filepath.Join(s.dir, "main.py"), asgi)
			command := []string{uvicorn, "main:app", "--fd", "{fd}"}
			if tt.command != nil {
				command = tt.command
				if command[0] == "{python}" {
					command[0] = pythonOf(t)
				}
			}
			// The control socket needs a place.
			flags := []string{"-w", "2", "--control", filepath.Join(s.dir, "control.sock")}
			s.run(options{flags: flags, command: command, env: tt.env})
			s.await("it serves", msg("Application startup complete"))
			e := s.await("it is told", msg(notInForce))
			if !strings.Contains(e.Reason, tt.reason) {
				t.Errorf("the reason is %q, want %q", e.Reason, tt.reason)
			}
			s.get("/").generation(1)
			s.upgrade(2)
			s.get("/").generation(2)
			if n := len(s.out.find(msg(notInForce))); n != 2 {
				t.Errorf("it was told %d times, want once for each generation", n)
			}
			s.stop()
		})
	}
}

// Whatever stands before uvicorn, its environment and its descriptors arrive, and the order to drain does, too.
func TestUvicorn_BehindWrappers(t *testing.T) {
	t.Parallel()
	for name, command := range map[string][]string{
		"sh -c":     {"/bin/sh", "-c", "uvicorn main:app --fd 3 --log-level warning --timeout-keep-alive 60; true"},
		"env":       {"/usr/bin/env", "A=B", "uvicorn", "main:app", "--fd", "{fd}", "--log-level", "warning", "--timeout-keep-alive", "60"},
		"gunicorn":  {"gunicorn", "-k", "uvicorn.workers.UvicornWorker", "--keep-alive", "60", "--log-level", "warning", "main:app"},
		"a program": {"{python}", "serve.py", "{port}"},
		"fastapi":   {"{dir}/fastapi", "run"}, // a stand-in that is told the address as the real one is
	} {
		t.Run(name, func(t *testing.T) {
			installed(t, "uvicorn")
			installed(t, "gunicorn")
			s := prepare(t)
			writeFile(t, filepath.Join(s.dir, "main.py"), asgi)
			// As `fastapi run` does: it names a host and a port, and nothing else.
			writeFile(t, filepath.Join(s.dir, "serve.py"), "import sys, uvicorn\n"+
				"uvicorn.run('main:app', host='0.0.0.0', port=int(sys.argv[1]), reload=False, workers=None, timeout_keep_alive=60)\n")
			writeFile(t, filepath.Join(s.dir, "fastapi"), "#!"+pythonOf(t)+"\nimport argparse, sys, uvicorn\n"+
				"p = argparse.ArgumentParser()\np.add_argument('verb')\np.add_argument('--host', default='127.0.0.2')\n"+
				"p.add_argument('--port', type=int, default=1)\na = p.parse_args()\n"+
				"sys.path.insert(0, '.')\nuvicorn.run('main:app', host=a.host, port=a.port, workers=None, timeout_keep_alive=60)\n")
			if err := os.Chmod(filepath.Join(s.dir, "fastapi"), 0o755); err != nil {
				t.Fatal(err)
			}
			port := fmt.Sprint(freePort(t))
			s.addr = "127.0.0.1:" + port
			for i := range command {
				command[i] = strings.NewReplacer("{dir}", s.dir, "{port}", port, "{python}", pythonOf(t)).Replace(command[i])
			}
			s.run(options{flags: []string{"-w", "2", "--listen", s.addr}, command: command})
			s.await("it serves", msg("Application startup complete"))
			s.demandAdapters(1, 2, "uvicorn ")
			p := plan{addr: s.addr, streams: uvicornStreams(100), rtt: 10 * time.Millisecond, every: 700 * time.Millisecond, tail: time.Second}
			n := counted(1, 5)
			r := p.under(t, n, func(i int) { s.upgrade(i + 2) })
			r.untouched(t, p)
			s.becomes("only the last generation lives", func(st control.Status) bool {
				return len(st.Generations) == 1 && st.Generations[0].Generation == n+1
			})
			s.stop()
		})
	}
}

// The status says what holds a worker that drains.
func TestUvicorn_StatusOfADrain(t *testing.T) {
	t.Parallel()
	s := uvicornServer(t, options{flags: []string{"-w", "1"}})
	l := s.ask("/?ms=5000")
	s.becomes("the request is being answered", func(st control.Status) bool { return st.Generations[0].Workers[0].Established > 0 })
	s.upgrade(2)
	s.becomes("the worker tells", func(st control.Status) bool {
		if len(st.Generations) < 2 || len(st.Generations[1].Workers) != 1 {
			return false
		}
		w := st.Generations[1].Workers[0]
		return w.InFlight != nil && *w.InFlight == 1 && strings.HasPrefix(w.Says, "draining: 1 requests in flight, 0 WebSockets open")
	})
	l.answer(t)
	s.settled(2, 1)
	s.stop()
}

// A worker that is replaced under a master that has itself replaced a dead one gets what its predecessor had.
func TestUvicorn_AdapterOutlivesTheMaster(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"auto", "off"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			want := map[string]string{"auto": "uvicorn ", "off": "--adapter off"}[mode]
			s := uvicornServer(t, options{flags: []string{"-w", "1", "--adapter", mode}})
			s.killMaster()
			s.demandAdapters(1, 1, want)
			s.restartWorker(1, 0)
			s.demandAdapters(1, 1, want)
			folders, err := filepath.Glob(filepath.Join(s.dir, "run", "gapless-adapter-*"))
			if err != nil || len(folders) != map[string]int{"auto": 1, "off": 0}[mode] {
				t.Errorf("there are %q, %v", folders, err)
			}
			s.stop()
			if folders, err = filepath.Glob(filepath.Join(s.dir, "run", "gapless-adapter-*")); err != nil || len(folders) > 0 {
				t.Errorf("left behind: %q, %v", folders, err)
			}
		})
	}
}

// Workers of another user read the adapter where they can reach it.
func TestUvicorn_AdapterOfAnotherUser(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Fatal("this needs root: it runs workers as another user")
	}
	place := publicDir(t)
	s := uvicornServer(t, options{flags: []string{"--user", "65534"}, env: []string{"TMPDIR=" + place}})
	s.demandAdapters(1, 2, "uvicorn ")
	s.upgrade(2)
	s.settled(2, 2)
	s.demandAdapters(2, 2, "uvicorn ")
	s.stop()
}
