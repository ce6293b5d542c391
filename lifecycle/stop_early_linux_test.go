package lifecycle

import (
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// An order to stop that comes at the very moment at which the first workers are ready is obeyed.
func TestMaster_StopsAtTheEndOfItsStart(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGQUIT} {
		t.Run(sig.String(), func(t *testing.T) {
			g := newGround(t)
			var start time.Duration
			measured := func(t *testing.T) {
				c := newChain(t, g, 1)
				began := time.Now()
				c.begin(false)
				start = time.Since(began)
				c.finish("QUIT")
			}
			synctest.Test(t, measured)
			for range 40 { // which of the two is seen first is the scheduler's choice
				synctest.Test(t, func(t *testing.T) {
					c := newChain(t, g, 1)
					c.begin(true)
					<-time.After(start - time.Millisecond) // begin looks every millisecond, a little late
					for c.first.m.state.get() == Starting && !c.readied() {
						<-time.After(50 * time.Microsecond)
					}
					c.locked(func() { c.stops = true })
					c.signal(sig)
					select {
					case <-c.first.over:
					case <-time.After(time.Minute): // longer than any drain
						c.locked(func() { c.fault("%s was lost", sig) })
					}
					c.finish("TERM, TERM")
					if len(c.faults) > 0 {
						t.Errorf("%s\njournal:\n%s", strings.Join(c.faults, "\n"), strings.Join(c.journal, "\n"))
					}
				})
			}
		})
	}
}

// readied tells whether the prober has seen a worker wait.
func (c *chain) readied() (ready bool) {
	c.locked(func() {
		for _, p := range c.programs {
			ready = ready || p.ready
		}
	})
	return ready
}
