package lifecycle

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"gapless/internal/procfs"
)

// stepVariable is in the environment of a command of the user's that a master runs: by it the parent finds all that the
// command has started when that master is killed, wherever it has gone.
const stepVariable = "GAPLESS_STEP"

// guardian is told of a command before it starts and after it has ended. What has the mark in its environment does not
// outlive the master that runs it.
type guardian interface {
	Guard(mark string) error
	Unguard(mark string)
}

// shell runs a command of the user's with sh and returns how it ended: an *exec.ExitError, or why it was ended or could not
// be started. What it prints goes where gapless writes, and to tail if that is not nil. Should this process be killed
// meanwhile, guard (nil: nobody) ends the command.
func shell(ctx context.Context, command, dir string, env []string, tail io.Writer, guard guardian) error {
	if guard != nil {
		mark := rand.Text()
		if err := guard.Guard(mark); err != nil {
			return err
		}
		// What it has left in the background when it ends is meant to stay, and no longer ours.
		defer guard.Unguard(mark)
		env = append(env[:len(env):len(env)], stepVariable+"="+mark)
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, env, os.Stdout, os.Stderr
	if tail != nil {
		cmd.Stdout, cmd.Stderr = io.MultiWriter(os.Stdout, tail), io.MultiWriter(os.Stderr, tail)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// What the shell runs goes first: it would be left behind.
	cmd.Cancel = func() error {
		_, err := procfs.SignalDescendants(cmd.Process.Pid, syscall.SIGKILL)
		return errors.Join(err, cmd.Process.Kill())
	}
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		return context.Cause(ctx) // also if the shell ended well because all that it waited for was killed
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		return nil // it has ended well, and left something in the background that still holds its output
	}
	return err
}

const (
	tailLines = 10
	tailBytes = 8 << 10
)

// tailWriter keeps the last of what is written to it. It may be written to by several goroutines.
type tailWriter struct {
	mu   sync.Mutex
	text []byte
}

func (w *tailWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, p...)
	if over := len(w.text) - tailBytes; over > 0 {
		w.text = slices.Delete(w.text, 0, over)
	}
	return len(p), nil
}

// lines returns the last lines that are not empty.
func (w *tailWriter) lines() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return lastLines(string(w.text))
}

func lastLines(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimRight(line, "\r\n"); strings.TrimSpace(line) != "" {
			lines = append(lines, line)
		}
	}
	return lines[max(0, len(lines)-tailLines):]
}
