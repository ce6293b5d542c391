package lifecycle

import (
	"context"
	"errors"
	"sync"

	"github.com/oklog/run"
	"go.uber.org/zap"
)

// errDone is how an actor ends the group without being a failure.
var errDone = errors.New("done")

// Group is an oklog/run group whose actors have names. run.Group keeps only the first error and interrupts one actor
// after the other, so here an interrupt only cancels the actor's context, and every actor's error is kept.
type Group struct {
	log *zap.Logger
	run run.Group

	mu   sync.Mutex
	errs []error
}

// NewGroup returns an empty group.
func NewGroup(log *zap.Logger) *Group { return &Group{log: log} }

// Add adds an actor. Its return, for whatever reason, ends the group: the contexts of the others are cancelled.
func (g *Group) Add(name string, execute func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	g.run.Add(func() error {
		err := execute(ctx)
		if err != nil && !errors.Is(err, errDone) && !errors.Is(err, context.Canceled) {
			g.mu.Lock()
			g.errs = append(g.errs, err)
			g.mu.Unlock()
		}
		g.log.Debug("actor ended", zap.String("actor", name), zap.Error(err))
		return err
	}, func(error) { cancel() })
}

// Run runs the actors and returns when all have ended, with all their errors joined.
func (g *Group) Run() error {
	_ = g.run.Run() // the first error, which is among errs if it is one
	g.mu.Lock()
	defer g.mu.Unlock()
	return errors.Join(g.errs...)
}
