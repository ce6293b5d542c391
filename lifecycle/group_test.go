package lifecycle

import (
	"context"
	"errors"
	"testing"

	"go.uber.org/zap"
)

func TestGroup_KeepsEveryError(t *testing.T) {
	first, second := errors.New("the first"), errors.New("the second")
	g := NewGroup(zap.NewNop())
	g.Add("fails", func(context.Context) error { return first })
	g.Add("fails, too, when it is told to end", func(ctx context.Context) error { <-ctx.Done(); return second })
	g.Add("ends as it should", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	g.Add("is done", func(ctx context.Context) error { <-ctx.Done(); return errDone })
	err := g.Run()
	if !errors.Is(err, first) || !errors.Is(err, second) || errors.Is(err, context.Canceled) || errors.Is(err, errDone) {
		t.Errorf("got %v", err)
	}
}

func TestGroup_EndsWithoutAnErrorWhenAnActorIsDone(t *testing.T) {
	for name, end := range map[string]error{"done": errDone, "nil": nil} {
		t.Run(name, func(t *testing.T) {
			g := NewGroup(zap.NewNop())
			g.Add("is done", func(context.Context) error { return end })
			g.Add("goes on", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
			if err := g.Run(); err != nil {
				t.Errorf("got %v", err)
			}
		})
	}
}
