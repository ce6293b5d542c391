package workerpool

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"gapless/internal/channel"

	"go.uber.org/zap"
)

// tell gives a worker that has been withdrawn its order to stop and returns how long it has; 0 is for ever. While the pool
// is frozen it tells nothing, lest the worker is told twice, and returns what is closed at the thaw.
func (w *worker) tell(o Order) (limit time.Duration, frozen <-chan struct{}) {
	w.pool.spawning.RLock()
	defer w.pool.spawning.RUnlock()
	if thaw := w.pool.thaw(); !isClosed(thaw) {
		return 0, thaw
	}
	var due time.Time
	now := time.Now()
	if limit = o.Timeout; limit > 0 {
		due = now.Add(limit)
	}
	w.mu.Lock()
	w.info.Told, w.info.ToldAt, w.due, w.gets = true, now, due, progress{Moved: now}
	if w.takesDrain {
		w.gets.Extra = o.Extra
	}
	w.mu.Unlock()
	w.pool.cfg.Keeper.Sync() // or a master in a killed one's place would tell it again, of which some servers die at once
	if w.takesDrain {
		var queue *os.File
		if !o.Stop && o.Queue != nil && w.snapshot().Handoff {
			queue = o.Queue()
		}
		err := w.ch.Send(channel.Drain{Deadline: o.Timeout, Extra: o.Extra, Spread: o.Spread, Handoff: queue != nil, Stop: o.Stop}, queue)
		if err == nil {
			return limit, nil
		}
		w.pool.log.Warn("worker does not hear its channel; it gets the stop signal", zap.Int("pid", w.proc.PID()), zap.Error(err))
	}
	if err := w.proc.Signal(w.pool.cfg.StopSignal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		w.pool.log.Warn("stop signal cannot be sent", zap.Int("pid", w.proc.PID()), zap.Error(err))
	}
	return limit, nil
}

// mayGoOn is for how long a worker whose time to drain is over may go on, because it still gets on.
func (w *worker) mayGoOn() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gets.more(w.due, time.Now())
}

// holding says what a draining worker still holds, as far as it told.
func (w *worker) holding() string {
	i := w.snapshot()
	if !w.takesDrain {
		return "it does not say what it still holds"
	}
	oldest := ""
	if !i.Oldest.IsZero() {
		oldest = fmt.Sprintf(", the oldest for %v", time.Since(i.Oldest).Round(time.Millisecond))
	}
	return fmt.Sprintf("%d requests in flight%s, %d connections open", i.InFlight, oldest, i.Connections)
}

// exited follows the end of the process. order is the order to drain, if it had one.
func (w *worker) exited(order *Order) {
	// While the pool is frozen the worker's end is for the next master, and so are its last words.
	select {
	case <-w.pool.thaw():
	case <-w.pool.stopC:
	}
	info := w.snapshot()
	status := w.proc.Status()
	w.leaveNobody(info.State, order)
	w.stopReaders()
	w.drainReaders()
	if w.out != nil {
		w.out.finish(time.Second)
	}
	if !w.wasUp && w.failure == nil {
		w.failure = &StartError{Worker: info.ID, Status: status, Tail: w.out.lastLines()}
	}
	w.to(Exited, status.String())
	w.pool.cfg.Keeper.Forget(info.ID)
	w.pool.cfg.Gate.Release(w.snapshot(), info.State)
	w.close() // from here on nobody records it; and whoever waits for the last worker finds nothing left open
	w.pool.exited(w, info.State, status)
}

// leaveNobody ends what the process left behind in its group. A leader that was asked to drain may have been a wrapper
// (sh -c, npm) that died of the signal alone: its server then gets the signal too, and has the rest of the time.
func (w *worker) leaveNobody(was State, order *Order) {
	w.mu.Lock()
	due := w.due
	if due.IsZero() && !w.info.Told && order != nil && order.Timeout > 0 {
		due = time.Now().Add(order.Timeout) // it died before it was told
	}
	w.mu.Unlock()
	if was == Draining && w.proc.SignalGroup(w.pool.cfg.StopSignal) == nil {
		w.pool.log.Debug("worker left processes behind; they drain", zap.Int("pid", w.proc.PID()))
		poll := time.NewTicker(groupPoll)
		defer poll.Stop()
		for due.IsZero() || time.Now().Before(due) {
			select {
			case <-poll.C:
			case <-w.kill:
				_ = w.proc.SignalGroup(syscall.SIGKILL)
				return
			}
			if w.proc.SignalGroup(0) != nil {
				return
			}
		}
	}
	_ = w.proc.SignalGroup(syscall.SIGKILL) // mostly there is nobody left, which is an error
}

// close closes this process's copies of the worker's descriptors; record does not happen at the same time, or after.
func (w *worker) close() {
	w.files.Lock()
	defer w.files.Unlock()
	w.closed = true
	if w.ch != nil {
		w.ch.Close()
	}
	if w.notify != nil {
		w.notify.Close()
	}
	w.proc.Close()
}

// hint says what would have made the worker ready, and what to do.
func (w *worker) hint() string {
	if name := w.snapshot().Adapter; name != "" && w.tellsItself {
		return name + " has not completed its startup"
	}
	if w.tellsItself {
		return "it uses the gapless package and has not said that it is ready: it must accept on every socket that it was " +
			"given, or call gapless.Ready()"
	}
	if at := w.elsewhere(); at != "" {
		return at
	}
	if w.given.early && w.pool.cfg.Readiness.Mode == ReadyAuto {
		return "it said READY=1 before it had loaded its application, and was not seen to accept connections since; if it " +
			"does, say with --ready http=/PATH how to tell, or have it load the application first (gunicorn --preload)"
	}
	return w.pool.cfg.Readiness.hint()
}

// elsewhere says that a worker listens at an address of its own instead of on the sockets that it was given; "": it does not.
func (w *worker) elsewhere() string {
	if st := w.snapshot().State; st != Starting || w.proc == nil {
		return ""
	}
	at := w.pool.cfg.Prober.Elsewhere(w.proc.PID(), w.inodes)
	if len(at) == 0 {
		return ""
	}
	return fmt.Sprintf("worker %d listens on %s itself and not on the socket that it inherited: have it take descriptor {fd} "+
		"(LISTEN_FDS), and leave the address of its own out", w.snapshot().Slot, strings.Join(at, ", "))
}

// fail ends a worker that cannot become ready.
func (w *worker) fail(err error) {
	w.failure = &StartError{Worker: w.snapshot().ID, Tail: w.out.lastLines(), Err: err}
	w.killNow(err.Error())
}

// killNow ends the worker and its process group.
func (w *worker) killNow(reason string) {
	if w.snapshot().State != Killing {
		w.to(Killing, reason)
	}
	if err := w.proc.SignalGroup(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		w.pool.log.Warn("worker cannot be killed", zap.Int("pid", w.proc.PID()), zap.Error(err))
	}
}
