package known

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func none(string) string { return "" }

func TestComplete(t *testing.T) {
	for _, tc := range []struct{ name, command, want string }{
		{"uvicorn without a socket", "uvicorn main:app", "uvicorn main:app --fd {fd}"},
		{"uvicorn with one", "uvicorn main:app --fd {fd}", "uvicorn main:app --fd {fd}"},
		{"uvicorn with one, in one word", "uvicorn --fd=3 main:app", "uvicorn --fd=3 main:app"},
		{"one process is what a worker is", "uvicorn main:app --workers 1", "uvicorn main:app --workers 1 --fd {fd}"},
		{"by a path", "/opt/venv/bin/uvicorn main:app", "/opt/venv/bin/uvicorn main:app --fd {fd}"},
		{"as a module", "python3 -m uvicorn main:app", "python3 -m uvicorn main:app --fd {fd}"},
		{"behind a wrapper", "poetry run uvicorn main:app", "poetry run uvicorn main:app --fd {fd}"},
		{"behind env", "env A=b uvicorn main:app", "env A=b uvicorn main:app --fd {fd}"},
		{"help", "uvicorn --help", "uvicorn --help"},
		{"fastapi", "fastapi run main.py", "fastapi run main.py --host 127.0.0.1 --port 8000"},
		{"fastapi with its port", "python -m fastapi run --port=8000 main.py", "python -m fastapi run --port=8000 main.py --host 127.0.0.1"},
		{"fastapi with an address", "poetry run fastapi run --host 0.0.0.0 --port 8000 --workers 1", "poetry run fastapi run --host 0.0.0.0 --port 8000 --workers 1"},
		{"fastapi's help", "fastapi run --help", "fastapi run --help"},
		{"fastapi does not serve", "fastapi --version", "fastapi --version"},
		{"hypercorn", "hypercorn main:app", "hypercorn main:app --bind fd://{fd}"},
		{"hypercorn with one", "hypercorn -b fd://{fd} main:app", "hypercorn -b fd://{fd} main:app"},
		{"gunicorn finds it", "gunicorn wsgi:app", "gunicorn wsgi:app"},
		{"gunicorn of one process", "gunicorn -w 1 wsgi:app", "gunicorn -w 1 wsgi:app"},
		{"puma", "puma config.ru", "puma config.ru --bind-to-activated-sockets only -w 0"},
		{"puma with an address", "bundle exec puma -b tcp://127.0.0.1:8000", "bundle exec puma -b tcp://127.0.0.1:8000 -w 0"},
		{"puma with a process of its own", "puma --bind-to-activated-sockets -w 1", "puma --bind-to-activated-sockets -w 1"},
		{"puma's help", "puma --help", "puma --help"},
		{"a program of node with its own option", "node server.js --port 9", "node server.js --port 9"},
		{"php-fpm", "php-fpm8.2", "env FPM_SOCKETS=127.0.0.1:8000={fd} php-fpm8.2 -F"},
		{"php-fpm in the foreground", "/usr/sbin/php-fpm -F", "env FPM_SOCKETS=127.0.0.1:8000={fd} /usr/sbin/php-fpm -F"},
		{"another program", "server --port 9", "server --port 9"},
		{"another program that names one", "server uvicorn --port 9", "server uvicorn --port 9"},
		{"what follows -- is the application's", "gunicorn wsgi:app -- -b x", "gunicorn wsgi:app -- -b x"},
		{"a longer name is another option", "uvicorn main:app --reload-dir x", "uvicorn main:app --reload-dir x --fd {fd}"},
		{"an import string", "main:app --log-level warning", "uvicorn main:app --log-level warning --fd {fd}"},
		{"no import string", "a-b:app", "a-b:app"},
		{"nothing", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := strings.Fields(tc.command)
			kept := slices.Clone(before)
			c, err := Complete(before, t.TempDir(), "127.0.0.1:8000", none)
			if err != nil || strings.Join(c.Args, " ") != tc.want {
				t.Errorf("got %q, %v, want %q", c.Args, err, tc.want)
			}
			if !slices.Equal(before, kept) {
				t.Errorf("the user's words became %q", before)
			}
		})
	}
}

func TestComplete_NamesWhatToWriteInstead(t *testing.T) {
	for command, want := range map[string]string{
		"uvicorn main:app --workers 4":        "uvicorn --workers 4: use gapless run -w 4",
		"uvicorn main:app --port=9000":        "uvicorn --port 9000: gapless opens the socket: use gapless run --port 9000",
		"uvicorn main:app --host 0.0.0.0":     "use gapless run --host 0.0.0.0",
		"uvicorn --uds /run/x main:app":       "use gapless run --listen unix:/run/x",
		"python -m uvicorn main:app --reload": "uvicorn --reload: gapless runs what is to stay",
		"main:app --reload":                   "gapless reload",
		"fastapi dev main.py":                 "fastapi dev: it starts anew whenever a file changes: use fastapi run",
		"uv run fastapi dev":                  "use fastapi run",
		"fastapi run --workers 4":             "fastapi --workers 4: use gapless run -w 4",
		"fastapi run --reload main.py":        "fastapi --reload: gapless runs what is to stay",
		"fastapi run main.py --port 9000":     "fastapi --port 9000: gapless opens the socket: use gapless run --port 9000",
		"gunicorn -b :80 wsgi:app":            "gunicorn -b :80: gapless opens the socket: use gapless run --listen :80",
		"gunicorn -b:80 wsgi:app":             "use gapless run --listen :80",
		"gunicorn --daemon wsgi:app":          "in the foreground",
		"hypercorn main:app -w 2":             "use gapless run -w 2",
		"hypercorn --bind 0.0.0.0:80 main:a":  "use gapless run --listen 0.0.0.0:80",
		"php-fpm -D":                          "in the foreground",
		"gunicorn -w 4 wsgi:app":              "gunicorn -w 4: use gapless run -w 4",
		"gunicorn --workers=4 wsgi:app":       "use gapless run -w 4",
		"python -m gunicorn -w4 wsgi:app":     "use gapless run -w 4",
		"puma -w 4":                           "puma -w 4: use gapless run -w 4",
		"bundle exec puma -p 3000":            "use gapless run --port 3000",
		"main:app --port 9000":                "--port 9000 stands behind main:app: write it before: gapless run --port 9000 main:app",
		"main:app -w 4":                       "gapless run -w 4 main:app",
		"main:app --ready=notify":             "gapless run --ready notify main:app",
	} {
		t.Run(command, func(t *testing.T) {
			_, err := Complete(strings.Fields(command), t.TempDir(), "127.0.0.1:8000", none)
			if !errors.Is(err, ErrOption) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line with %q", err, want)
			}
		})
	}
}

func TestComplete_FastAPIWithAPortToBeChosen(t *testing.T) {
	_, err := Complete([]string{"fastapi", "run"}, t.TempDir(), "127.0.0.1:0", none)
	if !errors.Is(err, ErrOption) || !strings.Contains(err.Error(), "--port PORT") {
		t.Errorf("got %v", err)
	}
	if _, err := Complete([]string{"fastapi", "run"}, t.TempDir(), "/run/app.sock", none); !errors.Is(err, ErrOption) || !strings.Contains(err.Error(), "run uvicorn main:app") {
		t.Errorf("with a socket of a path: %v", err)
	}
}

func TestComplete_PHP(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/waits.conf", "[global]\nprocess_control_timeout = 10s\n", 0o644)
	write(t, dir+"/cuts.conf", "[global]\n;process_control_timeout = 10s\n", 0o644)
	write(t, dir+"/zero.conf", "[global]\nprocess_control_timeout = 0\n", 0o644)
	for command, notes := range map[string]int{
		"php-fpm": 0, "php-fpm -y waits.conf": 0, "php-fpm -y cuts.conf": 1, "php-fpm --fpm-config=" + dir + "/zero.conf": 1, "php-fpm -y none.conf": 0,
	} {
		c, err := Complete(strings.Fields(command), dir, "127.0.0.1:9000", none)
		if err != nil || len(c.Notes) != notes || c.StopSignal != "QUIT" || !c.Blocking {
			t.Errorf("%s: got %+v, %v, want %d notes", command, c, err, notes)
		}
	}
	for _, addr := range []string{"/run/php.sock", "@php"} {
		if _, err := Complete([]string{"php-fpm"}, dir, addr, none); !errors.Is(err, ErrUnix) || !strings.Contains(err.Error(), "--port PORT") {
			t.Errorf("%s: got %v", addr, err)
		}
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func TestComplete_File(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/main.py", "from fastapi import FastAPI\nother = FastAPI()\napp: FastAPI = FastAPI(title='x')\n", 0o644)
	write(t, dir+"/api.py", "import fastapi\nservice = fastapi.FastAPI()\n", 0o644)
	write(t, dir+"/plain.py", "async def app(scope, receive, send):\n    pass\n", 0o644)
	write(t, dir+"/script.py", "print('hello')\n", 0o644)
	write(t, dir+"/run.py", "#!/usr/bin/env python3\n", 0o755)
	write(t, dir+"/shop/__init__.py", "", 0o644)
	write(t, dir+"/shop/web/__init__.py", "", 0o644)
	write(t, dir+"/shop/web/main.py", "app = Starlette()\n", 0o644)
	write(t, dir+"/src/main.py", "app = FastAPI()\n", 0o644)
	write(t, dir+"/server.js", "", 0o644)
	for _, tc := range []struct{ command, want, docs string }{
		{"main.py", "uvicorn main:app --fd {fd}", "{url}/docs"},
		{"./main.py --log-level warning", "uvicorn main:app --log-level warning --fd {fd}", "{url}/docs"},
		{"api.py", "uvicorn api:service --fd {fd}", "{url}/docs"},
		{"plain.py", "uvicorn plain:app --fd {fd}", ""},
		{"shop/web/main.py", "uvicorn shop.web.main:app --fd {fd}", ""},
		{"src/main.py", "uvicorn main:app --app-dir " + dir + "/src --fd {fd}", "{url}/docs"},
		{dir + "/main.py", "uvicorn main:app --fd {fd}", "{url}/docs"},
		{"./run.py", "./run.py", ""},
		{"server.js --flag", "node server.js --flag", ""},
	} {
		t.Run(tc.command, func(t *testing.T) {
			c, err := Complete(strings.Fields(tc.command), dir, "127.0.0.1:8000", none)
			docs := ""
			for _, n := range c.Notes {
				if n.Label == "docs" {
					docs = n.Text
				}
			}
			if err != nil || strings.Join(c.Args, " ") != tc.want || docs != tc.docs {
				t.Errorf("got %q, %v, %v, want %q", c.Args, c.Notes, err, tc.want)
			}
		})
	}
	for command, want := range map[string]string{
		"server.js --port 9": "--port 9 stands behind server.js: write it before: gapless run --port 9 server.js, or, if it is the program's own, gapless run -- node server.js --port 9",
		"main.py -w 4":       "write it before: gapless run -w 4 main.py",
	} {
		if _, err := Complete(strings.Fields(command), dir, "127.0.0.1:8000", none); !errors.Is(err, ErrOption) || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: %v, want %q", command, err, want)
		}
	}
	for _, command := range []string{"script.py", "missing.py", "missing.js"} {
		if _, err := Complete([]string{command}, dir, "127.0.0.1:8000", none); !errors.Is(err, ErrNoApp) {
			t.Errorf("%s: %v", command, err)
		}
	}
}

func TestComplete_VirtualEnvironment(t *testing.T) {
	dir, active := t.TempDir(), t.TempDir()
	write(t, dir+"/.venv/bin/uvicorn", "", 0o755)
	c, err := Complete([]string{"main:app"}, dir, "", none)
	if err != nil || c.Args[0] != dir+"/.venv/bin/uvicorn" {
		t.Errorf("beside the program: %q, %v", c.Args, err)
	}
	write(t, active+"/bin/uvicorn", "", 0o755)
	c, err = Complete([]string{"main:app"}, dir, "", func(string) string { return active })
	if err != nil || c.Args[0] != active+"/bin/uvicorn" {
		t.Errorf("the active one: %q, %v", c.Args, err)
	}
}

func FuzzComplete(f *testing.F) {
	f.Add("uvicorn main:app --workers 4")
	f.Add("main:app")
	f.Add("python -m uvicorn -b=")
	f.Fuzz(func(t *testing.T, text string) {
		command := strings.Fields(text)
		c, err := Complete(command, "/nonexistent", "127.0.0.1:8000", none)
		if err == nil && len(c.Args) < len(command) {
			t.Errorf("%q became %q", command, c.Args)
		}
	})
}

func TestSaysTooEarly(t *testing.T) {
	const booted = "Gunicorn arbiter booted"
	for _, tc := range []struct {
		status, command string
		want            bool
	}{
		{booted, "gunicorn main:app", true},
		{booted, "server", true},
		{booted, "gunicorn --preload main:app", false},
		{booted, "gunicorn --preload-x main:app", true},
		{"", "gunicorn main:app", false},
		{"ready", "gunicorn main:app", false},
	} {
		if got := SaysTooEarly(tc.status, strings.Fields(tc.command)); got != tc.want {
			t.Errorf("%q of %q: %v", tc.status, tc.command, got)
		}
	}
	if SaysTooEarly(booted, []string{"sh", "-c", "exec gunicorn --preload main:app"}) {
		t.Error("the option is not found in what a shell is given")
	}
}
