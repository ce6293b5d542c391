package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"go.uber.org/zap"
)

// runSteps runs the previous steps one after the other, each with a shell, in the release's directory. Their output goes
// where gapless writes. The first failure ends it.
func runSteps(ctx context.Context, steps []string, limit time.Duration, dir string, env []string, guard guardian, log *zap.Logger) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("not finished within --before-start-timeout %v", limit))
		defer cancel()
	}
	for _, step := range steps {
		began := time.Now()
		log.Info("Running previous step", zap.String("command", step))
		err := shell(ctx, step, dir, env, nil, guard)
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
