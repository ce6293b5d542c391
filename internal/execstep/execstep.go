// Package execstep is the last step before a worker's command: a few lines of our own binary that run in the new
// process and then become the command.
//
// It exists because some things can be said only there: LISTEN_PID is the worker's own PID, which nobody knows
// before the fork; limits, umask and credentials must not be those of the master; and os/exec's ExtraFiles would
// clear O_NONBLOCK on the sockets for every process that shares them.
//
// Where the command is our own binary, the step is its beginning and there is no exec.
package execstep

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// Verb is the hidden verb of the gapless binary that runs Main.
const Verb = "exec-worker"

// OwnBinary is the Path of a step whose command is the binary that runs the step.
const OwnBinary = "/proc/self/exe"

// FirstFD is the number of the first socket in a worker, as in systemd's protocol (SD_LISTEN_FDS_START).
const FirstFD = 3

// variable carries the Step to the new process. It is gone before the command starts.
const variable = "GAPLESS_EXEC_STEP"

// ErrNoStep says that the verb was called by hand.
var ErrNoStep = errors.New("exec-worker is a step of gapless run and not for calling by hand")

// Step says what the new process does before it becomes the command. The descriptors from FirstFD on are, in this
// order: the sockets, one for each of Extra, the working directory, the executable if ByFD, and the report pipe.
type Step struct {
	// Path is the file to execute; the argument vector follows the verb.
	Path string `json:"path"`
	// ByFD executes the executable's descriptor instead of Path: the file that Path named has been replaced
	// since the generation pinned it.
	ByFD bool `json:"by_fd,omitempty"`
	// Names are those of the sockets, for LISTEN_FDNAMES.
	Names []string `json:"names,omitempty"`
	// Extra are variables, each of which gets the number of one more descriptor.
	Extra []string `json:"extra,omitempty"`
	// UID and GID, where set, are the credentials of the command; Groups its supplementary groups.
	UID    *int  `json:"uid,omitempty"`
	GID    *int  `json:"gid,omitempty"`
	Groups []int `json:"groups,omitempty"`
	// Umask of the command, where set.
	Umask *int `json:"umask,omitempty"`
	// NoFile is its soft limit on open files; 0: the hard one.
	NoFile uint64 `json:"nofile,omitempty"`
	// Blocking has the sockets block in accept(2), for a command that knows no other way.
	Blocking bool `json:"blocking,omitempty"`
	// Watchdog is how often it must say WATCHDOG=1; 0: never.
	Watchdog time.Duration `json:"watchdog,omitempty"`
}

// Inside says that the step can be done by the command itself, with Here: an exec would only start the same binary once
// more, which costs a Go program of this size some 10 ms of a processor's time.
func (s Step) Inside() bool {
	return runtime.GOOS == "linux" && s.Path == OwnBinary && !s.ByFD && s.UID == nil && s.GID == nil
}

// Environ returns env with the step added.
func (s Step) Environ(env []string) ([]string, error) {
	data, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode the exec step: %w", err)
	}
	return append(env[:len(env):len(env)], variable+"="+string(data)), nil
}

// fromEnviron takes the step out of the process's environment.
func fromEnviron(environ []string) (Step, []string, error) {
	var s Step
	rest := make([]string, 0, len(environ))
	found := false
	for _, kv := range environ {
		if v, ok := strings.CutPrefix(kv, variable+"="); ok {
			if err := json.Unmarshal([]byte(v), &s); err != nil {
				return s, nil, fmt.Errorf("decode the exec step: %w", err)
			}
			found = true
			continue
		}
		rest = append(rest, kv)
	}
	if !found {
		return s, nil, ErrNoStep
	}
	return s, rest, nil
}

// layout gives the descriptor numbers of a step.
func (s Step) layout() (extra, dir, exe, report int) {
	extra = FirstFD + len(s.Names)
	dir = extra + len(s.Extra)
	exe = dir + 1
	report = exe
	if s.ByFD {
		report++
	}
	return extra, dir, exe, report
}

// environ is the command's environment: the descriptors and whose they are.
func (s Step) environ(env []string, pid int) []string {
	if n := len(s.Names); n > 0 {
		env = append(env, fmt.Sprintf("LISTEN_PID=%d", pid), fmt.Sprintf("LISTEN_FDS=%d", n),
			"LISTEN_FDNAMES="+strings.Join(s.Names, ":"))
	}
	if s.Watchdog > 0 {
		env = append(env, fmt.Sprintf("WATCHDOG_USEC=%d", s.Watchdog.Microseconds()), fmt.Sprintf("WATCHDOG_PID=%d", pid))
	}
	first, _, _, _ := s.layout()
	for i, name := range s.Extra {
		env = append(env, fmt.Sprintf("%s=%d", name, first+i))
	}
	return env
}

// Main runs the step with argv, the command's argument vector, and returns only when it failed. What went wrong is
// written to the report pipe, which execve closes on success.
func Main(argv []string) error {
	s, env, err := fromEnviron(os.Environ())
	if err != nil {
		return err
	}
	err = s.run(argv, env)
	s.report(err)
	return err
}

// Here does the step that a worker of our own binary was started with, and returns when the process is that worker. It
// does nothing in a process that was started otherwise.
func Here() error {
	s, env, err := fromEnviron(os.Environ())
	if errors.Is(err, ErrNoStep) {
		return nil
	}
	if err == nil {
		err = s.here(env)
	}
	s.report(err)
	return err
}

// report tells the master that the worker runs, by the end of the pipe, or why not.
func (s Step) report(err error) {
	_, _, _, report := s.layout()
	if w := os.NewFile(uintptr(report), "report"); w != nil {
		if err != nil {
			fmt.Fprint(w, err.Error())
		}
		w.Close()
	}
}
