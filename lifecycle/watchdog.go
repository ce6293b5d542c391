package lifecycle

import (
	"context"
	"time"
)

// watchdog tells the service manager above that all is well, as WatchdogSec= asks for it: twice in each span, and only while
// the master in charge answers and a worker of its generation is ready; while a dead one's place is taken, the parent knows
// that workers live. Without an answer nothing is said, and the manager does what it was told to do about that; a bad moment
// does not cost the service, as the question comes again before the span is over.
type watchdog struct {
	span    time.Duration // WATCHDOG_USEC
	healthy func(ctx context.Context) bool
	beat    func()
}

// run beats until ctx ends.
func (w watchdog) run(ctx context.Context) error {
	soon := max(w.span/8, 1)
	next := time.NewTimer(w.span / 2)
	defer next.Stop()
	for {
		select {
		case <-next.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		// An answer that takes longer is none: two more questions come before the span is over.
		ask, cancel := context.WithTimeout(ctx, soon)
		pause := soon
		if w.healthy(ask) {
			w.beat()
			pause = w.span / 2
		}
		cancel()
		next.Reset(pause)
	}
}

// healthy asks the master in charge. While there is none the parent answers, see (*parent).sound.
func (c *controller) healthy(ctx context.Context) bool {
	cl, done := c.order(ctx, command{Verb: verbHealth})
	defer done()
	select {
	case r := <-cl.result:
		return r.OK
	case <-c.p.over:
	case <-ctx.Done():
	}
	return false
}
