//go:build linux

package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// uvicornRoot names a folder that has a folder for each uvicorn to test, as `pip install --target ROOT/0.38.0
// uvicorn==0.38.0` makes it; pythons lists the interpreters, PATH-like. Without them only the installed uvicorn is tested.
const (
	uvicornRoot = "GAPLESS_UVICORN_ROOT"
	pythons     = "GAPLESS_PYTHONS"
)

// uvicornOfPython is a uvicorn that an interpreter can import.
type uvicornOfPython struct{ name, python, path string }

func uvicornMatrix(t *testing.T) []uvicornOfPython {
	t.Helper()
	all := []uvicornOfPython{{name: "the installed one", python: pythonOf(t)}}
	root := os.Getenv(uvicornRoot)
	if root == "" {
		return all
	}
	folders, err := filepath.Glob(filepath.Join(root, "*", "uvicorn"))
	if err != nil || len(folders) == 0 {
		t.Fatalf("%s: no folder */uvicorn in %s, %v", uvicornRoot, root, err)
	}
	interpreters := filepath.SplitList(os.Getenv(pythons))
	if len(interpreters) == 0 {
		interpreters = []string{pythonOf(t)}
	}
	for _, folder := range folders {
		for _, python := range interpreters {
			path := filepath.Dir(folder)
			version, err := exec.Command(python, "-c", "import platform; print(platform.python_version())").Output()
			if err != nil {
				t.Fatalf("%s: %s: %v", pythons, python, err)
			}
			name := "uvicorn " + filepath.Base(path) + ", python " + strings.TrimSpace(string(version))
			check := exec.Command(python, "-c", "import uvicorn.main, uvicorn.server, uvicorn.protocols.http.h11_impl")
			check.Env = append(os.Environ(), "PYTHONPATH="+path)
			if said, err := check.CombinedOutput(); err != nil {
				lines := strings.Split(strings.TrimSpace(string(said)), "\n")
				t.Logf("%s: cannot be imported: %s", name, lines[len(lines)-1])
				continue
			}
			all = append(all, uvicornOfPython{name, python, path})
		}
	}
	return all
}

// Each uvicorn with each Python, as far as it can be imported: the adapter is in force, and upgrades are not noticed.
func TestUvicorn_Matrix(t *testing.T) {
	for _, u := range uvicornMatrix(t) {
		t.Run(u.name, func(t *testing.T) {
			s := prepare(t)
			writeFile(t, filepath.Join(s.dir, "main.py"), asgi)
			o := options{command: []string{u.python, "-m", "uvicorn", "main:app", "--fd", "{fd}", "--loop", "asyncio", "--http", "h11",
				"--log-level", "warning", "--no-access-log", "--timeout-keep-alive", "60"}}
			if u.path != "" {
				o.env = []string{"PYTHONPATH=" + u.path}
			}
			s.run(o)
			s.await("uvicorn is ready", msg("Application startup complete"))
			p := plan{addr: s.addr, streams: uvicornStreams(60), rtt: 10 * time.Millisecond, every: 500 * time.Millisecond, tail: 500 * time.Millisecond}
			const upgrades = 3
			r := p.under(t, upgrades, func(i int) { s.upgrade(i + 2) })
			r.untouched(t, p)
			s.settled(upgrades+1, 2)
			s.demandAdapters(upgrades+1, 2, "(h11, asyncio)")
			s.adapterInForce()
			s.stop()
			if !testing.Verbose() {
				return
			}
			n := 0
			for i := range r {
				n += r[i].Requests
			}
			t.Logf("0 of %d requests lost", n)
		})
	}
}
