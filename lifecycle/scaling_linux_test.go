package lifecycle

import (
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A change of the number of workers that cannot be made at once is made when it can be; one that fails leaves the number
// that was wanted before, and what others have made of it meanwhile.
func TestMaster_NumberOfWorkers(t *testing.T) {
	dies := func(c *chain) { // whoever would stay is not there for a moment: fewer would be none
		pid := c.inCharge().pool.Slots()[0].PID
		c.do(step{kind: "die", n: c.index(pid)})
	}
	do := func(kind string) func(*chain) { return func(c *chain) { c.do(step{kind: kind}) } }
	pass := func(d time.Duration) func(*chain) {
		return func(*chain) { <-time.After(d); synctest.Wait() }
	}
	signal := func(sig syscall.Signal) func(*chain) {
		return func(c *chain) { c.signal(sig); synctest.Wait() }
	}
	fewer, more := signal(syscall.SIGTTOU), signal(syscall.SIGTTIN)
	scale := func(n int) func(*chain) {
		return func(c *chain) { c.command(command{Verb: verbScale, Workers: n}); synctest.Wait() }
	}
	for _, tt := range []struct {
		name    string
		workers int
		history []func(*chain)
		want    int
	}{
		{"fewer while the one that stays is replaced", 2, []func(*chain){dies, fewer}, 1},
		{"fewer and more while the one that stays is replaced", 2, []func(*chain){dies, fewer, more}, 2},
		{"fewer twice while the one that stays is replaced", 3, []func(*chain){dies, do("break"), fewer, fewer, do("mend")}, 1},
		{"fewer as an upgrade fails", 2, []func(*chain){dies, do("upgrade that fails"), fewer}, 1},
		{"a refused scale changes nothing", 2, []func(*chain){dies, scale(1)}, 2},
		{"a refused scale does not undo what waits", 3, []func(*chain){dies, do("break"), fewer, scale(1), do("mend")}, 2},
		{"a scale that fails does not undo what waits", 2, []func(*chain){do("break"), dies, fewer, scale(3), pass(30 * time.Second), do("mend")}, 1},
		{"fewer during a scale that fails", 2, []func(*chain){do("break"), scale(4), fewer, pass(30 * time.Second), do("mend")}, 1},
		{"more that fails", 2, []func(*chain){do("break"), more, pass(30 * time.Second), do("mend")}, 2},
		{"more during more that fails", 2, []func(*chain){do("break"), more, do("mend"), more, pass(30 * time.Second)}, 3},
		{"never below one", 2, []func(*chain){fewer, fewer, fewer}, 1},
		{"an upgrade takes over what waits", 2, []func(*chain){do("break"), dies, fewer, do("mend"), do("upgrade")}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGround(t)
			synctest.Test(t, func(t *testing.T) {
				c := newChain(t, g, tt.workers)
				c.begin(false)
				<-time.After(5 * time.Second)
				synctest.Wait()
				for _, f := range tt.history {
					f(c)
				}
				c.wanted = tt.want
				<-time.After(2 * time.Minute) // longer than a backoff
				synctest.Wait()
				if m := c.inCharge(); m == nil || !c.complete(m) {
					c.locked(func() { c.fault("there are not %d workers that are ready", tt.want) })
				}
				c.finish("TERM")
				if len(c.faults) > 0 {
					t.Errorf("%s\njournal:\n%s", strings.Join(c.faults, "\n"), strings.Join(c.journal, "\n"))
				}
			})
		})
	}
}

// index is the place of a program among those that run.
func (c *chain) index(pid int) int {
	for i, p := range c.alive() {
		if p.pid == pid {
			return i
		}
	}
	return -1
}
