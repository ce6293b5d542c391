package gapless

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// lingering returns, in order, how long after the order to drain each of n
// connections ended. At the time stop, if that is not 0, everything stops.
func lingering(t *testing.T, n int, o order, stop time.Duration) []time.Duration {
	t.Helper()
	// It heeds the order already, so that no signals are asked for in a bubble.
	p := &process{draining: make(chan struct{}), stop: make(chan struct{}), drains: true}
	p.drained.L = &p.mu
	ended := make(chan time.Duration, n)
	begin := time.Now()
	for range n {
		ctx, cancel := p.linger(t.Context())
		context.AfterFunc(ctx, func() {
			if !errors.Is(context.Cause(ctx), ErrDraining) {
				t.Errorf("ended because of %v", context.Cause(ctx))
			}
			ended <- time.Since(begin)
			cancel()
		})
	}
	o.from = begin
	p.orderDrain(o)
	if stop > 0 {
		time.AfterFunc(stop, p.orderStop)
	}
	var all []time.Duration
	for range n {
		all = append(all, <-ended)
	}
	synctest.Wait()
	slices.Sort(all)
	return all
}

func TestLinger_EndsAreSpread(t *testing.T) {
	for _, tc := range []struct {
		name        string
		o           order
		stop        time.Duration
		first, last time.Duration // within which the ends must lie, and which they must fill
	}{
		{"as late as can be, all together", order{deadline: 30 * time.Second}, 0, 28 * time.Second, 28 * time.Second},
		{"spread", order{deadline: 30 * time.Second, spread: 10 * time.Second}, 0, 18 * time.Second, 28 * time.Second},
		{"over more than there is", order{deadline: 4 * time.Second, spread: time.Minute}, 0, 0, 3 * time.Second},
		{"where everything stops", order{stop: true, deadline: 30 * time.Second, spread: 10 * time.Second}, 0, 0, time.Second},
		{"where everything stops later", order{}, 5 * time.Second, 5 * time.Second, 5 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const n = 200
				ends := lingering(t, n, tc.o, tc.stop)
				first, last := ends[0], ends[n-1]
				if first < tc.first || last > tc.last {
					t.Errorf("ended between %v and %v, want between %v and %v", first, last, tc.first, tc.last)
				}
				if got, want := last-first, (tc.last-tc.first)*8/10; got < want {
					t.Errorf("spread over %v, want over at least %v", got, want)
				}
				for i := 1; i < n; i++ {
					if gap := ends[i] - ends[i-1]; tc.last > tc.first && gap > (tc.last-tc.first)/8 {
						t.Errorf("nobody ends for %v before %v", gap, ends[i])
					}
				}
			})
		})
	}
}

func TestLinger_EndsWithItsParent(t *testing.T) {
	p := noEnv(t)
	parent, end := context.WithCancel(t.Context())
	ctx, cancel := p.linger(parent)
	defer cancel()
	end()
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, ErrDraining) {
		t.Errorf("ended because of %v", err)
	}
}
