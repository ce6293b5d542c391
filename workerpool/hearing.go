package workerpool

import (
	"context"
	"errors"
	"sync"
	"time"

	"gapless/internal/channel"
	"gapless/internal/notify"

	"go.uber.org/zap"
)

// startReaders lets the worker be heard: its channel, its notify socket and, where it goes through us, its output. It does
// nothing where that is so already, or where the worker is gone.
func (w *worker) startReaders() {
	w.files.Lock()
	defer w.files.Unlock()
	if w.stopRd != nil || w.closed {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.stopRd = cancel
	if w.ch != nil {
		w.readers.Go(func() { w.readChannel(ctx) })
	}
	if w.notify != nil {
		w.readers.Go(func() { w.readNotify(ctx) })
	}
	if w.out != nil {
		w.out.start()
	}
}

// stopReaders returns when nothing is read from the worker any more, except for its output. What has not been read
// stays in the kernel, for the next master.
func (w *worker) stopReaders() {
	w.files.Lock()
	defer w.files.Unlock()
	if w.stopRd == nil {
		return
	}
	w.stopRd()
	w.readers.Wait()
	w.stopRd = nil
}

// settleHearing returns when the owner has taken in all that the readers had heard.
func (w *worker) settleHearing() {
	b := make(barrier)
	select {
	case w.said <- b:
	case <-w.proc.Done():
		return
	}
	select {
	case <-b:
	case <-w.proc.Done(): // its group may take as long as a drain to end, and says nothing
	}
}

// listenAgain takes in all that the worker has said on its channel until now. It tells whether that makes it ready, and
// whether it could listen at all: while the pool is frozen it cannot.
func (w *worker) listenAgain() (ready, sure bool) {
	w.pool.spawning.RLock()
	defer w.pool.spawning.RUnlock()
	if !isClosed(w.pool.thaw()) {
		return false, false
	}
	w.stopReaders()
	defer w.startReaders()
	for {
		select {
		case said := <-w.said:
			ready = w.hear(said) || ready
			continue
		default:
		}
		if w.ch == nil || !w.ch.Pending() {
			return ready, true
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		m, f, err := w.ch.Receive(ctx)
		cancel()
		if f != nil {
			f.Close()
		}
		if err != nil {
			return ready, true
		}
		ready = w.hear(m) || ready
	}
}

// drainReaders takes in what the readers had heard when they were stopped.
func (w *worker) drainReaders() {
	for {
		select {
		case said := <-w.said:
			_ = w.hear(said)
		default:
			return
		}
	}
}

// tellOwner passes on what was heard. The owner always comes back to listen, or the readers are stopped.
func (w *worker) tellOwner(ctx context.Context, said any) {
	select {
	case w.said <- said:
	case <-ctx.Done():
		// Nothing heard may be lost in a hand-over: the buffer takes what one reader holds at that moment.
		select {
		case w.said <- said:
		default:
		}
	}
}

// lineMatcher returns what is told of each line that the worker prints, and passes on the first that says that it is ready.
func (w *worker) lineMatcher() func(line []byte) {
	re := w.pool.cfg.Readiness.Line
	if re == nil {
		return func([]byte) {}
	}
	var once sync.Once
	return func(line []byte) {
		if !re.Match(line) {
			return
		}
		once.Do(func() {
			select {
			case w.said <- matched{}:
			case <-w.proc.Done(): // the owner may not listen any more, and waits for the output's end
			}
		})
	}
}

func (w *worker) readChannel(ctx context.Context) {
	for {
		m, f, err := w.ch.Receive(ctx)
		if f != nil {
			f.Close() // no message from a worker carries one
		}
		if err != nil {
			// End of file: the worker closed its end, or is gone, which its pidfd tells. Garbage: there is no use in
			// listening on.
			if ctx.Err() == nil {
				w.pool.log.Debug("worker's channel ended", zap.Int("pid", w.proc.PID()), zap.Error(err))
			}
			return
		}
		w.tellOwner(ctx, m)
	}
}

func (w *worker) readNotify(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { _ = w.notify.SetReadDeadline(longAgo) })
	defer func() {
		if stop() {
			return
		}
		_ = w.notify.SetReadDeadline(never)
	}()
	for {
		m, err := w.notify.Receive()
		switch {
		case errors.Is(err, notify.ErrForeign):
			continue
		case err != nil:
			return
		case !w.pool.cfg.Owns(w.proc.PID(), m.PID):
			w.pool.log.Warn("notify message from a stranger ignored", zap.Int("pid", m.PID), zap.Int("worker_pid", w.proc.PID()))
			continue
		}
		w.tellOwner(ctx, m)
	}
}

// hear takes what a reader heard and tells whether it makes a starting worker ready.
func (w *worker) hear(said any) bool {
	ready := false
	switch m := said.(type) {
	case channel.Adapter:
		w.mu.Lock()
		w.info.Adapter, w.info.NoAdapter = m.Name, m.Reason
		if m.Reason != "" {
			w.info.Adapter = ""
		}
		w.mu.Unlock()
		w.pool.cfg.Keeper.Changed()
	case channel.Hello:
		w.mu.Lock()
		w.tellsItself = true
		w.mu.Unlock()
		w.pool.cfg.Keeper.Changed()
	case channel.Ready:
		w.mu.Lock()
		w.takesDrain = m.Drain
		w.info.Handoff = m.Handoff
		w.mu.Unlock()
		ready = true
	case channel.Status:
		w.mu.Lock()
		now := time.Now()
		w.info.InFlight, w.info.Connections, w.info.Handed, w.info.Reports = m.InFlight, m.Connections, m.Handed, true
		w.info.Oldest = time.Time{}
		if age := m.Oldest(); age > 0 {
			w.info.Oldest = now.Add(-age)
		}
		w.gets.heard(m.Bytes, now)
		w.mu.Unlock()
	case notify.Message:
		ready = m.Ready() && !w.given.waitsFor(m, w.pool.cfg.Readiness.Mode)
		if m.Ready() && !ready && w.given.early {
			w.mu.Lock()
			if w.info.State == Starting {
				w.info.Reason = saidTooEarly
			}
			w.mu.Unlock()
			w.pool.log.Debug("Worker said READY=1 before its application is loaded", zap.Int("pid", w.proc.PID()))
		}
		if says, ok := m.Fields["STATUS"]; ok {
			w.mu.Lock()
			w.info.Says = says[:min(len(says), maxSays)]
			w.mu.Unlock()
		}
		if m.Fields["WATCHDOG"] == "1" {
			w.mu.Lock()
			w.info.Beat = time.Now()
			w.mu.Unlock()
		}
	case barrier:
		close(m)
	case matched:
		return w.snapshot().State == Starting
	}
	mode := w.pool.cfg.Readiness.Mode
	return ready && (mode == ReadyAuto || mode == ReadyNotify) && w.snapshot().State == Starting
}
