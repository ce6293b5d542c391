package adapter

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"gapless/internal/channel"
	"gapless/internal/testwait"
)

// reasonOf waits for the adapter's word why it is not in force.
func (w *worker) reasonOf() string {
	w.t.Helper()
	a := next[channel.Adapter](w, nil)
	if a.Reason == "" {
		w.t.Fatalf("the adapter is in force: %q", a.Name)
	}
	return a.Reason
}

// serves waits until the worker answers.
func (w *worker) serves() {
	w.t.Helper()
	testwait.Until(w.t, "it says that it listens", func() bool { return strings.Contains(w.printed(), "Application startup complete") })
	c := dial(w.t, w.addr)
	c.send(post("/", "a"))
	c.answered("a")
}

// silent demands that the worker has said nothing.
func (w *worker) silent() {
	w.t.Helper()
	if w.ch.Pending() {
		m, _, err := w.ch.Receive(w.t.Context())
		w.t.Errorf("it said %+v, %v", m, err)
	}
}

// Where the adapter is not loaded, or cannot be in force, the server is as it is without; where it can, gapless hears why.
func TestUvicorn_IsLeftAsItIs(t *testing.T) {
	cert, key := certificate(t)
	run := []string{"{uvicorn}", "main:app", "--fd", "3"}
	for _, tt := range []struct {
		name   string
		setup  setup
		reason string // "": nothing is heard
		mute   bool   // it does not serve the socket that the test asks
	}{
		{"python -I", setup{command: []string{"{python}", "-I", "{uvicorn}", "main:app", "--app-dir", "{dir}", "--fd", "3"}}, "", false},
		{"python -E", setup{command: []string{"{python}", "-E", "-m", "uvicorn", "main:app", "--fd", "3"}}, "", false},
		{"python -S", setup{noKit: true, command: run}, "", false},
		{"the folder has gone", setup{command: append([]string{"/usr/bin/env", "PYTHONPATH=/nonexistent"}, run...)}, "", false},
		{"the channel is closed", setup{command: []string{"/bin/sh", "-c", `exec "$0" "$@" 4>&-`, "{uvicorn}", "main:app", "--fd", "3"}}, "", false},
		{"the queue is closed", setup{command: []string{"/bin/sh", "-c", `exec "$0" "$@" 5<&-`, "{uvicorn}", "main:app", "--fd", "3"}}, "were closed on the way", false},
		{"another socket", setup{command: []string{"{uvicorn}", "main:app", "--uds", "{dir}/sock"}}, "does it have --fd {fd}?", true},
		{"TLS", setup{command: append(run[:len(run):len(run)], "--ssl-certfile", "{dir}/cert", "--ssl-keyfile", "{dir}/key"),
			files: map[string]string{"cert": cert, "key": key}}, "TLS", true},
		{"an unknown parser", setup{command: []string{"{python}", "serve.py"}, files: map[string]string{"serve.py": unknownParser}},
			"the HTTP implementation Own is unknown", false},
		{"another constructor", setup{command: []string{"{python}", "serve.py"}, files: map[string]string{"serve.py": otherConstructor}},
			"H11Protocol wants a mood, which is unknown", false},
		{"a name has gone", setup{command: []string{"{python}", "serve.py"}, files: map[string]string{"serve.py": missingName}},
			"has no on_response_complete", false},
		{"a uvicorn that nobody knows", setup{command: []string{"{python}", "-c", "import uvicorn.server"},
			files: map[string]string{"uvicorn/__init__.py": "__version__ = '9'", "uvicorn/server.py": "class Server:\n    def startup(self): pass\n"}},
			"Server.startup of this uvicorn is not as it is known", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := start(t, tt.setup)
			if tt.reason != "" {
				if got := w.reasonOf(); !strings.Contains(got, tt.reason) {
					t.Errorf("the reason is %q, want %q", got, tt.reason)
				}
			}
			if !tt.mute {
				w.serves()
			}
			w.silent()
		})
	}
}

const (
	serve = `
import asyncio, uvicorn
from main import app
config = uvicorn.Config(app, fd=3, http=Own, loop="asyncio")
uvicorn.Server(config).run()
`
	unknownParser = `
from uvicorn.protocols.http.h11_impl import H11Protocol
class Own:
    def __new__(cls, **kw):
        return H11Protocol(**kw)
` + serve
	otherConstructor = `
from uvicorn.protocols.http import h11_impl
def init(self, config, server_state, mood="good", **kw):
    h11_impl.H11Protocol.__base_init__(self, config, server_state, **kw)
h11_impl.H11Protocol.__base_init__ = h11_impl.H11Protocol.__init__
import inspect
names = ("self", "config", "server_state", "mood")
init.__signature__ = inspect.Signature([inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names])
h11_impl.H11Protocol.__init__ = init
Own = h11_impl.H11Protocol
` + serve
	missingName = `
from uvicorn.protocols.http.h11_impl import H11Protocol
class Own(H11Protocol):
    def __getattribute__(self, name):
        if name == "on_response_complete" and object.__getattribute__(self, "transport") is None:
            raise AttributeError(name)
        return super().__getattribute__(name)
` + serve
)

// What gapless gave is nothing for the programs that the server starts; what the user gave, is.
func TestUvicorn_ChildrenSeeNothing(t *testing.T) {
	for _, user := range []string{"", "/user/one:/user/two"} {
		t.Run("PYTHONPATH="+user, func(t *testing.T) {
			w := start(t, setup{env: []string{"PYTHONPATH=" + user}})
			w.ready()
			c := dial(t, w.addr)
			c.send(post("/environment", ""))
			resp, err := http.ReadResponse(c.r, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			text := string(body)
			for _, never := range []string{"GAPLESS_CHANNEL", "GAPLESS_HANDOFF", "/uvicorn-", " 4 -> socket", " 5 -> socket"} {
				if strings.Contains(text, never) {
					t.Errorf("a child sees %q:\n%s", never, text)
				}
			}
			if strings.Contains(text, "PYTHONPATH=") != (user != "") || !strings.Contains(text, user) {
				t.Errorf("PYTHONPATH is not the user's %q:\n%s", user, text)
			}
		})
	}
}

// A sitecustomize of the user runs as ever, and one that fails is told by Python as ever.
func TestUvicorn_ChainsSitecustomize(t *testing.T) {
	text := `
import sys
print("the user's own:", __name__, __file__.endswith("mine/sitecustomize.py"), sys.modules[__name__].__file__ == __file__, flush=True)
print("path:", [p for p in sys.path if "/uvicorn-" in p], flush=True)
`
	w := start(t, setup{env: []string{"PYTHONPATH={dir}/mine"}, files: map[string]string{"mine/sitecustomize.py": text}})
	w.ready()
	for _, want := range []string{"the user's own: sitecustomize True True\n", "path: []\n"} {
		if !strings.Contains(w.printed(), want) {
			t.Errorf("not printed: %q", want)
		}
	}
	w = start(t, setup{env: []string{"PYTHONPATH={dir}/mine"}, files: map[string]string{"mine/sitecustomize.py": "raise ValueError('mine')"}})
	w.ready()
	if !strings.Contains(w.printed(), "ValueError: mine") {
		t.Error("Python has not told of the error")
	}
}

// A server that would open the port that gapless has gets the socket instead: uvicorn, and what calls it, such as fastapi run.
func TestUvicorn_GetsTheSocketOfItsPort(t *testing.T) {
	for name, s := range map[string]setup{
		"uvicorn --port": {command: []string{"{uvicorn}", "main:app", "--port", "{port}"}},
		"python -m":      {command: []string{"{python}", "-m", "uvicorn", "main:app", "--port", "{port}"}},
		"uvicorn.run": {command: []string{"{python}", "serve.py"}, files: map[string]string{
			"serve.py": "import sys, uvicorn\nuvicorn.run('main:app', host='0.0.0.0', port=int(sys.argv[1]), reload=False, workers=None)\n"}},
		"uvicorn.Server in a program's own loop": {command: []string{"{python}", "serve.py"}, files: map[string]string{
			"serve.py": "import asyncio, sys, uvicorn\nfrom main import app\n" +
				"asyncio.run(uvicorn.Server(uvicorn.Config(app, port=int(sys.argv[1]))).serve())\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if s.files != nil {
				s.command = append(s.command, "{port}")
			}
			w := start(t, s)
			w.ready()
			c := dial(t, w.addr)
			c.send(post("/", "a"))
			c.answered("a")
			r := w.drain(channel.Drain{Deadline: time.Minute, Handoff: true})
			given := take(t, r)
			c.send(post("/", "b"))
			servedBy(t, given)
			c.answered("new b")
			w.ends()
		})
	}
}
