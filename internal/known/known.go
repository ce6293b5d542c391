// Package known is the table of servers that gapless knows by name: how each takes a socket that it inherits, and which
// of its options would fight with gapless. What it completes a user could have written; a command that is not in the
// table is left as it is.
package known

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// ErrOption is what the errors match that name an option of a server which gapless has in its place.
var ErrOption = errors.New("an option that is gapless's")

// Note is a line for the start-up banner. {url} in Text stands for the address that a person can open.
type Note struct{ Label, Text string }

// Command is what is run for what the user wrote.
type Command struct {
	Args       []string
	Notes      []Note
	Blocking   bool   // it must be given sockets that block in accept(2)
	StopSignal string // what has the server finish what it has begun, where that is not TERM
}

// server is a row of the table.
type server struct {
	names []string
	// takes adds to the arguments behind the name how it takes the socket, where they do not say it; env is put before
	// the command. nil: it finds the socket by LISTEN_FDS.
	takes   func(args []string, addr string) (more, env []string)
	options []option
	blocks  bool   // it takes a socket that does not block for a broken one
	stop    string // the signal for a graceful end; "": TERM
	// early is the STATUS= that comes with a READY=1 from before the application is loaded; "": it does not say so too
	// early. With the option eager it loads the application first.
	early, eager string
	// looks tells what else there is to know of it where it is to serve addr, or why it cannot; dir is where it will run. May be nil.
	looks func(args []string, dir, addr string) ([]Note, error)
}

// option is one that the server must not be given.
type option struct {
	names   []string
	bare    bool                    // it has no value
	fine    func(value string) bool // values that do no harm; nil: none
	instead string                  // what to write, for people; %s is the value
}

// one is fine as a number of processes: that is what each worker is.
func one(value string) bool { return value == "1" }

func passed(value string) bool { return strings.HasPrefix(value, "fd://") }

const (
	useWorkers = "use gapless run -w %s, which starts so many of them and replaces them one by one"
	useReload  = "gapless runs what is to stay: leave it out, and take new code in with gapless reload"
	useSocket  = "gapless opens the socket: use gapless run --listen %s"
	usePort    = "gapless opens the socket: use gapless run --port %s"
	useHost    = "gapless opens the socket: use gapless run --host %s"
	useUnix    = "gapless opens the socket: use gapless run --listen unix:%s"
	useFront   = "gapless needs it in the foreground: leave it out; systemd and containers want it there as well"
)

// servers is the table. How each says that it is ready is not in it: the kernel shows it for all of them, and gunicorn,
// puma and hypercorn send READY=1 where they know how.
var servers = []server{
	{
		names: []string{"uvicorn"},
		takes: func(args []string, _ string) (more, env []string) {
			if has(args, "--fd") || len(args) == 0 || args[0] == "--help" || args[0] == "--version" {
				return nil, nil
			}
			return []string{"--fd", "{fd}"}, nil
		},
		options: []option{
			{names: []string{"--workers"}, fine: one, instead: useWorkers},
			{names: []string{"--port"}, instead: usePort},
			{names: []string{"--host"}, instead: useHost},
			{names: []string{"--uds"}, instead: useUnix},
			{names: []string{"--reload"}, bare: true, instead: useReload},
		},
	},
	{
		names: []string{"hypercorn"},
		takes: func(args []string, _ string) (more, env []string) {
			if has(args, "-b", "--bind") {
				return nil, nil
			}
			return []string{"--bind", "fd://{fd}"}, nil
		},
		options: []option{
			{names: []string{"-w", "--workers"}, fine: one, instead: useWorkers},
			{names: []string{"-b", "--bind"}, fine: passed, instead: useSocket},
			{names: []string{"--reload"}, bare: true, instead: useReload},
		},
	},
	{
		names: []string{"gunicorn"},
		options: []option{
			{names: []string{"-w", "--workers"}, fine: one, instead: useWorkers},
			{names: []string{"-b", "--bind"}, fine: passed, instead: useSocket},
			{names: []string{"--reload"}, bare: true, instead: useReload},
			{names: []string{"-D", "--daemon"}, bare: true, instead: useFront},
		},
		early: "Gunicorn arbiter booted", // its processes load the application, after that
		eager: "--preload",
	},
	{
		// WEB_CONCURRENCY=1 alone would have it start a process of its own for its one worker.
		names: []string{"puma"},
		takes: func(args []string, _ string) (more, env []string) {
			if slices.ContainsFunc(args, func(a string) bool { return slices.Contains([]string{"-h", "--help", "-V", "--version"}, a) }) {
				return nil, nil
			}
			if !has(args, "-b", "--bind", "--bind-to-activated-sockets") {
				more = append(more, "--bind-to-activated-sockets", "only")
			}
			if !has(args, "-w", "--workers") {
				more = append(more, "-w", "0")
			}
			return more, nil
		},
		options: []option{
			{names: []string{"-w", "--workers"}, fine: func(n string) bool { return n == "0" || one(n) }, instead: useWorkers},
			{names: []string{"-p", "--port"}, instead: usePort},
		},
	},
	fastAPI,
	phpFPM,
}

// wrappers run the command that follows them.
var wrappers = []string{"env", "nice", "poetry", "pipenv", "uv", "pdm", "hatch", "rye", "bundle", "run", "exec"}

// Complete returns the command with what its server needs to take the socket of addr (as HOST:PORT or a path), and what
// there is to tell of it. dir is where it will run. Its errors match ErrOption, ErrUnix or ErrNoApp and name what to write
// instead.
func Complete(command []string, dir, addr string, getenv func(string) string) (Command, error) {
	c, err := expand(command, dir, getenv)
	if err != nil {
		return Command{}, err
	}
	s, at := find(c.Args)
	if s == nil {
		return c, nil
	}
	name, args := filepath.Base(c.Args[at]), c.Args[at+1:]
	for _, o := range s.options {
		if flag, value, ok := o.in(args); ok {
			text := o.instead
			if strings.Contains(text, "%s") {
				text = fmt.Sprintf(text, value)
			}
			return Command{}, fmt.Errorf("%w: %s %s: %s", ErrOption, name, strings.TrimSpace(flag+" "+value), text)
		}
	}
	if s.looks != nil {
		notes, err := s.looks(args, dir, addr)
		if err != nil {
			return Command{}, err
		}
		c.Notes = append(c.Notes, notes...)
	}
	c.StopSignal, c.Blocking = s.stop, s.blocks
	if s.takes != nil {
		more, env := s.takes(args, addr)
		c.Args = append(slices.Clone(c.Args), more...)
		if len(env) > 0 {
			c.Args = append(append([]string{"env"}, env...), c.Args...)
		}
	}
	return c, nil
}

// SaysTooEarly tells whether a worker that says READY=1 along with this STATUS= is a server that does so before it has loaded
// the application. It goes by what the server itself says, because whatever runs it may hide its name; the command tells
// only that it was told to load the application first.
func SaysTooEarly(status string, command []string) bool {
	return status != "" && slices.ContainsFunc(servers, func(s server) bool {
		return s.early == status && !slices.ContainsFunc(command, func(word string) bool { return slices.Contains(strings.Fields(word), s.eager) })
	})
}

// find finds the server in a command: its row and where its name stands.
func find(command []string) (*server, int) {
	for i, word := range command {
		name := filepath.Base(word)
		for k := range servers {
			if slices.Contains(servers[k].names, name) {
				return &servers[k], i
			}
		}
		python := strings.HasPrefix(name, "python") && i+1 < len(command) && command[i+1] == "-m"
		if !python && word != "-m" && !slices.Contains(wrappers, name) && !strings.Contains(word, "=") && (i == 0 || !strings.HasPrefix(word, "-")) {
			return nil, 0
		}
	}
	return nil, 0
}

// in finds the option among arguments: as --name value, --name=value, -n value, or -nvalue.
func (o option) in(args []string) (flag, value string, found bool) {
	for i, a := range args {
		if a == "--" {
			break
		}
		for _, name := range o.names {
			rest, ok := strings.CutPrefix(a, name)
			long := strings.HasPrefix(name, "--")
			switch {
			case !ok, long && rest != "" && rest[0] != '=', o.bare && rest != "":
				continue
			case o.bare:
				return name, "", true
			case rest != "":
				value = strings.TrimPrefix(rest, "=")
			case i+1 < len(args):
				value = args[i+1]
			}
			if o.fine == nil || !o.fine(value) {
				return name, value, true
			}
		}
	}
	return "", "", false
}

func has(args []string, names ...string) bool {
	_, _, ok := option{names: names}.in(args)
	return ok
}
