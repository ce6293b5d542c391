package workerpool

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"gapless/internal/execstep"
	"gapless/internal/packet"
	"gapless/internal/pidfd"
)

// ExecSpawner starts workers as real processes, through an exec step of our own binary.
type ExecSpawner struct {
	// Self is our own binary; "" is the one that this process runs, also when its file has been replaced.
	Self string
}

// errExec wraps what the exec step reports.
var errExec = errors.New("the command cannot be run")

// Spawn starts l in a process group of its own and returns when it has become the command.
func (s ExecSpawner) Spawn(l Launch) (Process, error) {
	self := s.Self
	if self == "" {
		self = "/proc/self/exe"
	}
	step := execstep.Step{Path: l.Path, ByFD: l.Exe != nil, UID: l.UID, GID: l.GID, Groups: l.Groups, Umask: l.Umask,
		NoFile: l.NoFile, Watchdog: l.Watchdog, Blocking: l.Blocking}
	stdin, err := os.Open(os.DevNull)
	if err != nil {
		return nil, fmt.Errorf("standard input of a worker: %w", err)
	}
	defer stdin.Close()
	reportR, reportW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("report of a worker's start: %w", err)
	}
	defer reportR.Close()
	defer reportW.Close()

	files := []*os.File{stdin, or(l.Stdout, os.Stdout), or(l.Stderr, os.Stderr)}
	for _, sock := range l.Sockets {
		files = append(files, sock.File)
		step.Names = append(step.Names, sock.Name)
	}
	for _, x := range l.Extra {
		files = append(files, x.File)
		step.Extra = append(step.Extra, x.Variable)
	}
	files = append(files, l.Dir)
	if l.Exe != nil {
		files = append(files, l.Exe)
	}
	files = append(files, reportW)
	fds := make([]uintptr, len(files))
	for i, f := range files {
		fd, err := packet.Descriptor(f)
		if err != nil {
			return nil, fmt.Errorf("descriptor %d of a worker: %w", i, err)
		}
		fds[i] = uintptr(fd)
	}
	env, err := step.Environ(l.Env)
	if err != nil {
		return nil, err
	}
	argv := l.Args
	if !step.Inside() {
		argv = append([]string{"gapless", execstep.Verb, "--"}, argv...)
	}
	proc, err := pidfd.Start(self, argv, &syscall.ProcAttr{
		Files: fds, Env: env, Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return nil, err
	}
	reportW.Close()
	// The pipe ends with the exec; what comes before is the reason why there was none.
	if msg, err := io.ReadAll(io.LimitReader(reportR, 4096)); err != nil || len(msg) > 0 {
		_ = proc.SignalGroup(syscall.SIGKILL)
		proc.Status()
		proc.Close()
		return nil, fmt.Errorf("%w: %s", errExec, msg)
	}
	return proc, nil
}

// Attach takes over a process by its pidfd.
func (ExecSpawner) Attach(pid int, f *os.File) (Process, error) {
	defer f.Close()
	return pidfd.Adopt(f, pid)
}

func or(f, def *os.File) *os.File {
	if f != nil {
		return f
	}
	return def
}
