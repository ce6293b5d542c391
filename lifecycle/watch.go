package lifecycle

import (
	"context"
	"sync"

	"gapless/upgrade"

	"go.uber.org/zap"
)

// laneWatch runs the inventory's watcher while this master is in charge, and not while it is frozen: only the one in
// charge changes programs.
type laneWatch struct {
	watch func(ctx context.Context) // blocks until ctx ends

	mu     sync.Mutex
	cancel context.CancelFunc
	done   chan struct{}
}

// start begins to watch; it does nothing where one runs.
func (w *laneWatch) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cancel != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	w.cancel, w.done = cancel, done
	go func() {
		defer close(done)
		w.watch(ctx)
	}()
}

// stop returns when nothing is watched any more.
func (w *laneWatch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cancel != nil {
		w.cancel()
		<-w.done
		w.cancel = nil
	}
}

// watchLanes is the body of the watch.
func (m *master) watchLanes(ctx context.Context) {
	var preview sync.WaitGroup
	preview.Go(func() { m.watchPreview(ctx) })
	defer preview.Wait()
	err := m.inv.Watch(ctx, upgrade.WatchOptions{
		Stalled: func(lane *upgrade.Lane, out bool) {
			if out {
				m.log.Warn("Worker does not accept; its lane gets no new connections until its queue is empty", zap.String("lane", lane.Name()))
			} else {
				m.log.Info("Worker accepts again", zap.String("lane", lane.Name()))
			}
		},
		Stray: m.strays.add,
	})
	if err != nil {
		m.log.Error("Lanes are not watched any more", zap.Error(err))
	}
}
