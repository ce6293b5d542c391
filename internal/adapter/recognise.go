package adapter

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Match says which adapter a command may use.
type Match struct {
	Name string
	// Expected says that the command names the server itself. Otherwise it is a program that may turn out to be one
	// (python main.py): that the adapter is not heard of is then nothing to tell.
	Expected bool
}

// Recognise finds out which adapter suits a command, from its words alone and, where it names a script by its path, from
// the script's first line. path is the resolved executable. It reports false for a command that it does not know.
func Recognise(argv []string, path string) (Match, bool) {
	if len(argv) == 0 {
		return Match{}, false
	}
	if m, ok := recognise(argv, 0); ok {
		return m, true
	}
	if m, ok := ofInterpreter(interpreter(path)); ok {
		return m, true
	}
	return Match{}, false
}

// wrappers run the command among their arguments, and pass the environment on.
var wrappers = []string{
	"env", "nice", "ionice", "chrt", "taskset", "numactl", "stdbuf", "time", "timeout", "setpriv", "setsid", "unshare",
	"gosu", "su-exec", "sudo", "tini", "dumb-init", "catatonit", "strace", "prlimit", "chronic", "unbuffer", "bundle",
	"poetry", "pipenv", "uv", "pdm", "hatch", "rye", "conda", "mamba", "pixi", "doppler", "dotenv", "direnv", "chpst",
	"opentelemetry-instrument", "ddtrace-run", "newrelic-admin", "coverage", "exec",
}

var shells = []string{"sh", "bash", "dash", "ash", "zsh", "ksh", "busybox"}

// word splits what a shell is given, well enough to find a program's name.
var word = regexp.MustCompile(`[^\s;&|(){}"'<>]+`)

// maxDepth bounds wrappers in wrappers.
const maxDepth = 4

func recognise(argv []string, depth int) (Match, bool) {
	if len(argv) == 0 || depth > maxDepth {
		return Match{}, false
	}
	name := filepath.Base(argv[0])
	if m, ok := ofProgram(name, argv[1:]); ok {
		return m, true
	}
	switch {
	case slices.Contains(shells, name):
		for i, arg := range argv[1:] {
			if strings.HasPrefix(arg, "-") && !strings.HasPrefix(arg, "--") && strings.Contains(arg, "c") && i+2 < len(argv) {
				return first(word.FindAllString(argv[i+2], -1), depth)
			}
		}
	case slices.Contains(wrappers, name):
		return first(argv[1:], depth)
	}
	return Match{}, false
}

// first returns what the first word says that begins a command that is known.
func first(words []string, depth int) (Match, bool) {
	for i, w := range words {
		if strings.HasPrefix(w, "-") || strings.Contains(w, "=") {
			continue
		}
		if m, ok := recognise(words[i:], depth+1); ok {
			return m, true
		}
	}
	return Match{}, false
}

var pythons = regexp.MustCompile(`^(python|pypy)[0-9.]*$`)

// ofProgram knows the servers by their names.
func ofProgram(name string, args []string) (Match, bool) {
	switch {
	case name == "uvicorn":
		return Match{Uvicorn, true}, true
	case name == "fastapi":
		return Match{Uvicorn, slices.Contains(args, "run") || slices.Contains(args, "dev")}, true
	case name == "gunicorn":
		return ofGunicorn(args)
	case pythons.MatchString(name):
		return ofPython(args)
	}
	return ofNode(name, args)
}

// ofPython looks at the module that python -m runs.
func ofPython(args []string) (Match, bool) {
	for i, a := range args {
		if a == "-m" && i+1 < len(args) {
			if m, ok := ofProgram(args[i+1], args[i+2:]); ok && !pythons.MatchString(args[i+1]) {
				return m, true
			}
			break
		}
		if !strings.HasPrefix(a, "-") {
			break
		}
	}
	return Match{Uvicorn, false}, true
}

// ofGunicorn knows its uvicorn worker, which may be named in a configuration file, too.
func ofGunicorn(args []string) (Match, bool) {
	named := slices.ContainsFunc(args, func(a string) bool {
		return strings.Contains(a, "uvicorn.workers.") || strings.Contains(a, "uvicorn_worker.")
	})
	return Match{Uvicorn, named}, true
}

// interpreter returns the name of the program that a script's first line asks for; "" if the file is none.
func interpreter(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	head := make([]byte, 256)
	n, _ := f.Read(head)
	line, _, _ := bytes.Cut(head[:n], []byte("\n"))
	rest, ok := bytes.CutPrefix(line, []byte("#!"))
	if !ok {
		return ""
	}
	for _, w := range strings.Fields(string(rest)) {
		if base := filepath.Base(w); base != "env" && !strings.HasPrefix(w, "-") && !strings.Contains(w, "=") {
			return base
		}
	}
	return ""
}

// ofInterpreter is for scripts: nobody knows what they run.
func ofInterpreter(name string) (Match, bool) {
	if pythons.MatchString(name) {
		return Match{Uvicorn, false}, true
	}
	if nodes.MatchString(name) {
		return Match{Node, false}, true
	}
	return Match{}, false
}
