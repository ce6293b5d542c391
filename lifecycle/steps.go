package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"gapless/internal/procfs"

	"go.uber.org/zap"
)

// runSteps runs the previous steps one after the other, each with a shell, in the release's directory. Their output goes
// where gapless writes. The first failure ends it.
func runSteps(ctx context.Context, steps []string, limit time.Duration, dir string, env []string, log *zap.Logger) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("not finished within --before-start-timeout %v", limit))
		defer cancel()
	}
	for _, step := range steps {
		began := time.Now()
		log.Info("Running previous step", zap.String("command", step))
		cmd := exec.CommandContext(ctx, "/bin/sh", "-c", step)
		cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, env, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		// What the shell runs goes first: it would be left behind.
		cmd.Cancel = func() error {
			_, err := procfs.SignalDescendants(cmd.Process.Pid, syscall.SIGKILL)
			return errors.Join(err, cmd.Process.Kill())
		}
		cmd.WaitDelay = time.Second
		err := cmd.Run()
		if ctx.Err() != nil {
			err = context.Cause(ctx) // also if the shell ended well because all that it waited for was killed
		}
		if err != nil {
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				return fmt.Errorf("previous step %q failed: %w; mend it, or leave out --before-start", step, err)
			}
			return fmt.Errorf("previous step %q: %w", step, err)
		}
		log.Info("Previous step finished", zap.String("command", step), zap.Duration("took", time.Since(began)))
	}
	return nil
}
