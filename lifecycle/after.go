package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"time"

	"gapless/internal/control"
	"gapless/workerpool"

	"go.uber.org/zap"
)

// afterRecord is what is to run once after a generation has taken charge and all that came before it has gone: the contract
// step of a migration whose expand step ran before.
//
// It runs at most once. It is an operation, so that nothing else changes meanwhile and steps of several generations run in
// their order; before its first command starts, the ledger tells that it is under way and not to come any more. A master
// that takes a killed one's place does not run it again: whether half of a migration may be repeated only people know.
// While it waits it is each next master's: by the ledger, or by the legacy of an upgrade.
type afterRecord struct {
	Generation int      `json:"generation"`
	Commands   []string `json:"commands"`
	Dir        string   `json:"dir"` // of the generation's release
}

// afterwards returns what is to run after this generation, beside what older ones have left to run.
func (m *master) afterwards(left []afterRecord) []afterRecord {
	if len(m.cfg.AfterPromote) == 0 {
		return left
	}
	return append(slices.Clone(left), afterRecord{Generation: m.generation, Commands: m.cfg.AfterPromote, Dir: m.pinned.Load().release.dirName})
}

// changed is told of each worker's change: one of an older generation that has gone may have been the last, and one that
// is ready may be all that a smaller number of workers waited for.
func (m *master) changed(e workerpool.Event) {
	if e.State == workerpool.Starting {
		return
	}
	select {
	case m.changes <- struct{}{}:
	default: // govern has not looked since the one before
	}
}

// afterDue tells whether the first of what waits may run: nothing from before its generation serves any more.
func (m *master) afterDue() bool {
	if len(m.after) == 0 {
		return false
	}
	for _, w := range m.pool.Workers() {
		if w.Role == "" && w.Generation < m.after[0].Generation && w.State != workerpool.Exited {
			return false
		}
	}
	return true
}

// runAfter runs the first of what waits.
func (m *master) runAfter(ctx context.Context) {
	r := m.after[0]
	m.after = slices.Delete(slices.Clone(m.after), 0, 1)
	m.log.Info("The old generation is gone; running what is to follow", zap.Int("after_generation", r.Generation))
	m.emit(control.Event{Kind: control.KindAfterPromote, Generation: r.Generation, State: "starting"})
	m.begin(ctx, control.KindAfterPromote, nil, r.Generation, func(ctx context.Context) error { return m.runCommands(ctx, r) })
}

func (m *master) runCommands(ctx context.Context, r afterRecord) error {
	environ, err := readEnvFiles(os.Environ(), m.cfg.EnvFiles)
	if err != nil {
		return err
	}
	env := append(workerEnviron(environ, r.Dir), "GAPLESS_GENERATION="+strconv.Itoa(r.Generation), "GAPLESS_REVISION=1")
	for _, command := range r.Commands {
		var tail tailWriter
		began := time.Now()
		if err := shell(ctx, command, r.Dir, env, &tail, m.keep); err != nil {
			return &afterError{command: command, err: err, tail: tail.lines()}
		}
		m.log.Info("Step after the promotion finished", zap.String("command", command), zap.Duration("took", time.Since(began)))
	}
	return nil
}

// afterError is why what was to follow did not.
type afterError struct {
	command string
	err     error
	tail    []string
}

func (e *afterError) Error() string {
	var exit *exec.ExitError
	if errors.As(e.err, &exit) {
		return fmt.Sprintf("%q failed: %v", e.command, e.err)
	}
	return fmt.Sprintf("%q: %v", e.command, e.err)
}

func (e *afterError) Unwrap() error { return e.err }

// afterEnded follows its end. A failure undoes nothing: what it was to follow serves.
func (m *master) afterEnded(op *operation, err error) {
	e := control.Event{Kind: control.KindAfterPromote, Generation: op.target, State: "done", TookSeconds: time.Since(op.began).Seconds()}
	m.afterFailed = ""
	if err != nil {
		var failed *afterError
		if errors.As(err, &failed) {
			e.LastLines = failed.tail
		}
		e.State, e.Reason = "failed", err.Error()
		m.afterFailed = fmt.Sprintf("--after-promote of generation %d: %v; it is not run again", op.target, err)
		m.log.Error("What was to follow the promotion failed; it is not run again", zap.Int("after_generation", op.target), zap.Error(err),
			zap.Strings("last_lines", e.LastLines))
	} else {
		m.log.Info("What was to follow the promotion is complete", zap.Int("after_generation", op.target), zap.Duration("took", time.Since(op.began)))
	}
	m.emit(e)
}

// afterInterrupted follows a master that was killed while it ran.
func (m *master) afterInterrupted(op *operationRecord) {
	m.afterFailed = fmt.Sprintf("--after-promote of generation %d: the master was killed while it ran; see whether it is complete: it is not run again", op.Target)
	m.log.Error("The master was killed while it ran what was to follow the promotion; see whether that is complete", zap.Int("after_generation", op.Target))
	m.emit(control.Event{Kind: control.KindAfterPromote, Generation: op.Target, State: "failed", Reason: "the master was killed meanwhile"})
}
