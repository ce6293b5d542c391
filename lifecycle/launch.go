package lifecycle

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gapless/internal/execstep"
	"gapless/upgrade"
	"gapless/workerpool"
)

// managerVariables are those of the manager itself, and of the managers above it: none is a worker's business.
var managerVariables = []string{
	"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES", "FDSTORE",
	"MAINPID",
}

// workerEnviron returns the environment that all workers of a generation share.
func workerEnviron(environ []string, dir string) []string {
	var env []string
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "GAPLESS_") || strings.HasPrefix(name, "TABLEFLIP_") || name == "PWD" || name == "WEB_CONCURRENCY" {
			continue
		}
		own := false
		for _, v := range managerVariables {
			own = own || name == v
		}
		if !own {
			env = append(env, kv)
		}
	}
	// uvicorn and gunicorn would multiply themselves; how many there are is gapless's business.
	return append(env, "PWD="+dir, "WEB_CONCURRENCY=1")
}

// launcher prepares the starts of one generation's workers.
type launcher struct {
	release    *release
	env        []string
	generation int
	revision   int
	nofile     uint64
	handoff    *os.File   // receiving end of the generation's queue, or nil
	tickets    *os.File   // keys of TLS session tickets, or nil
	inject     *injection // nil: no adapter is known for the command
	ids        credentials
	umask      *int
	blocking   bool
	crowded    func() bool // whether there are more workers than CPUs; nil: no
}

// goProcs is how many threads of a Go program may run at a time. The runtime takes all CPUs for each process. Where
// there are more workers than CPUs, their threads only take the CPUs from each other: with four workers on two CPUs one
// thread for each gave 12 % more requests a second, and a third of the latency at the 99th percentile.
const goProcs = "GOMAXPROCS"

// placeholder matches what COMMAND and its arguments may hold. A name begins with a letter, so that the {fd:3} of a
// JavaScript one-liner is left alone.
var placeholder = regexp.MustCompile(`\{(fd|worker|generation|fd:(?:[^0-9{}][^{}]*)?)\}`)

// CheckPlaceholders tells whether every {fd:NAME} in a command names one of the addresses.
func CheckPlaceholders(command []string, addrs []upgrade.Address) error {
	var names []string
	for _, a := range addrs {
		names = append(names, a.Name)
	}
	for _, arg := range command {
		for _, p := range placeholder.FindAllString(arg, -1) {
			if name, ok := strings.CutPrefix(strings.Trim(p, "{}"), "fd:"); ok && !slices.Contains(names, name) {
				return fmt.Errorf("%s in the command: no --listen is called %q; the names are %s", p, name, strings.Join(names, ", "))
			}
		}
	}
	return nil
}

func (l *launcher) launch(slot int, sockets []workerpool.Socket) (workerpool.Launch, error) {
	argv := make([]string, len(l.release.argv))
	var missing error
	for i, arg := range l.release.argv {
		argv[i] = placeholder.ReplaceAllStringFunc(arg, func(p string) string {
			switch name := p[1 : len(p)-1]; name {
			case "worker":
				return strconv.Itoa(slot)
			case "generation":
				return strconv.Itoa(l.generation)
			case "fd":
				return strconv.Itoa(execstep.FirstFD)
			default:
				name = strings.TrimPrefix(name, "fd:")
				for n, s := range sockets {
					if s.Name == name {
						return strconv.Itoa(execstep.FirstFD + n)
					}
				}
				missing = fmt.Errorf("no --listen is called %q, as %s in the command asks; its names are %s", name, p, socketNames(sockets))
				return p
			}
		})
	}
	if missing != nil {
		return workerpool.Launch{}, missing
	}
	launch := workerpool.Launch{
		Path: l.release.path, Exe: l.release.replacement(), Args: argv, Dir: l.release.dir,
		Env: append(l.env[:len(l.env):len(l.env)], "GAPLESS_WORKER="+strconv.Itoa(slot),
			"GAPLESS_GENERATION="+strconv.Itoa(l.generation), "GAPLESS_REVISION="+strconv.Itoa(l.revision)),
		UID: l.ids.uid, GID: l.ids.gid, Groups: l.ids.groups, Umask: l.umask, NoFile: l.nofile, Blocking: l.blocking,
	}
	if l.crowded != nil && l.crowded() && !slices.ContainsFunc(l.env, func(kv string) bool { return strings.HasPrefix(kv, goProcs+"=") }) {
		launch.Env = append(launch.Env, goProcs+"=1")
	}
	l.inject.into(&launch)
	if l.handoff != nil {
		launch.Extra = append(launch.Extra, workerpool.Extra{Variable: "GAPLESS_HANDOFF", File: l.handoff})
	}
	if l.tickets != nil {
		launch.Extra = append(launch.Extra, workerpool.Extra{Variable: ticketsVariable, File: l.tickets})
	}
	return launch, nil
}

func socketNames(sockets []workerpool.Socket) string {
	var names []string
	for _, s := range sockets {
		names = append(names, s.Name)
	}
	return strings.Join(names, ", ")
}
