package lifecycle

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"gapless/internal/pidfd"
	"gapless/workerpool"

	"pgregory.net/rapid"
)

// step is one of a random history of a chain. It was drawn before the bubble, which a failing draw could not leave.
type step struct {
	kind string
	n    int           // which worker, or how
	d    time.Duration // passes after it
}

var steps = []string{"die", "die", "hang", "break", "mend", "upgrade", "upgrade", "upgrade that fails", "reload", "more", "more", "fewer", "logs",
	"stage", "stage", "keep", "walk", "shift", "shift", "promote", "promote and keep", "abort", "rollback"}

// Whatever happens in whatever order:
//
//   - at most one master is in charge, and one that was never in charge leaves no process behind,
//   - no generation's number is used twice,
//   - nothing is started by a master that is frozen or gone,
//   - nobody gets the stop signal twice, or while nobody else takes new connections, unless everything stops,
//   - unless starts fail, there are in the end as many workers as were asked for,
//   - an order to stop ends everything in the time that it has, a second one at once, and every worker is waited for.
func TestMaster_Properties(t *testing.T) {
	g := newGround(t)
	rapid.Check(t, func(rt *rapid.T) {
		workers := rapid.IntRange(1, 3).Draw(rt, "workers")
		early := rapid.Bool().Draw(rt, "early")
		history := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
			return step{
				kind: rapid.SampledFrom(steps).Draw(rt, "kind"),
				n:    rapid.IntRange(0, 7).Draw(rt, "n"),
				d:    rapid.SampledFrom([]time.Duration{0, time.Millisecond, 4 * time.Millisecond, 200 * time.Millisecond, 20 * time.Second}).Draw(rt, "d"),
			}
		}), 1, 15).Draw(rt, "history")
		ending := rapid.SampledFrom([]string{"TERM", "TERM, TERM", "QUIT"}).Draw(rt, "ending")
		var faults []string
		synctest.Test(t, func(t *testing.T) {
			c := newChain(t, g, workers)
			c.begin(early)
			for _, s := range history {
				c.do(s)
				c.look()
			}
			c.finish(ending)
			if faults = c.faults; len(faults) > 0 {
				faults = append(faults, "journal:\n"+strings.Join(c.journal, "\n"))
			}
		})
		if len(faults) > 0 {
			rt.Fatal(strings.Join(faults, "\n"))
		}
	})
}

// begin starts the first master. Unless what follows shall come early, it is in charge on return.
func (c *chain) begin(early bool) {
	c.numbers[1] = true
	c.first = c.newReign(1, nil)
	c.last = c.first
	c.wanted = c.cfg.Workers
	go c.first.run()
	go c.deliver()
	for !early && c.first.m.state.get() == Starting {
		<-time.After(time.Millisecond)
	}
}

func (c *chain) do(s step) {
	switch alive := c.alive(); s.kind {
	case "die":
		if len(alive) > 0 {
			p := alive[s.n%len(alive)]
			c.locked(func() {
				c.death = time.Now()
				c.disturbed = c.disturbed || !p.ready
				p.exit(pidfd.Status{Known: true, Signal: syscall.SIGSEGV})
			})
		}
	case "hang":
		if m := c.inCharge(); m != nil && m.state.get() == Serving && len(alive) > 0 { // as keepLimits does
			c.locked(func() { c.death = time.Now(); c.disturbed = true })
			m.pool.Abort(alive[s.n%len(alive)].pid, "it hangs")
		}
	case "break":
		c.locked(func() { c.broken, c.disturbed = true, true })
	case "mend":
		c.locked(func() { c.broken = false })
	case "upgrade", "upgrade that fails":
		c.locked(func() { c.outcome = map[string]string{"upgrade that fails": "fail"}[s.kind] })
		c.signal(syscall.SIGUSR2)
	case "reload":
		c.signal(syscall.SIGHUP)
	case "more":
		c.wanted++
		c.signal(syscall.SIGTTIN)
	case "fewer":
		if c.wanted > 1 {
			c.wanted--
			c.signal(syscall.SIGTTOU)
		}
	case "stage":
		c.command(command{Verb: verbUpgrade, Stage: &stageRequest{Hold: true}})
	case "keep":
		c.command(command{Verb: verbUpgrade, Stage: &stageRequest{Keep: &stageWindow}})
	case "walk":
		c.command(command{Verb: verbUpgrade, Stage: &stageRequest{Hold: true, Weights: []int{10, 50}, Bake: time.Second, Keep: &stageWindow}})
	case "shift":
		c.command(command{Verb: verbShift, Percent: s.n * 100 / 7})
	case "promote":
		c.command(command{Verb: verbPromote})
	case "promote and keep":
		c.command(command{Verb: verbPromote, Stage: &stageRequest{Keep: &stageWindow}})
	case "abort":
		c.command(command{Verb: verbAbort})
	case "rollback":
		c.command(command{Verb: verbRollback})
	case "logs":
		c.signal(syscall.SIGUSR1)
	}
	if s.d > 0 {
		<-time.After(s.d)
	}
	synctest.Wait()
}

// signal has one delivered.
func (c *chain) signal(sig syscall.Signal) {
	c.seq++
	c.locked(func() { c.note("signal %s", sig) })
	c.outbox <- linkMessage{Seq: c.seq, Signal: sig}
}

// stageWindow is how long a generation is kept in a history.
var stageWindow = 10 * time.Second

// command has one delivered.
func (c *chain) command(cmd command) {
	c.seq++
	c.locked(func() { c.note("command %s", cmd.Verb) })
	c.outbox <- linkMessage{Seq: c.seq, Command: &cmd}
}

// inCharge returns the master that is, or nil.
func (c *chain) inCharge() *master {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch m := c.last.m; m.state.get() {
	case Starting, Over:
		return nil
	default:
		return m
	}
}

// look checks what must hold at any time.
func (c *chain) look() {
	inCharge := 0
	for s := c.first; s != nil; s = s.following() {
		if st := s.m.state.get(); st != Starting && st != Over {
			inCharge++
			c.weights(s.m)
			c.remembered(s.m)
		}
	}
	if inCharge > 1 {
		c.locked(func() { c.fault("%d masters are in charge", inCharge) })
	}
}

// remembered looks at what a master that takes this one's place would learn of older generations: only what it needs.
func (c *chain) remembered(m *master) {
	if m.inv == nil || m.state.get() == Frozen {
		return
	}
	l := m.snapshot()
	for _, f := range l.Facts[1:] {
		if !slices.ContainsFunc(l.Workers, func(w workerpool.Record) bool { return w.Generation == f.Generation }) {
			c.locked(func() { c.fault("generation %d is remembered and has no workers", f.Generation) })
		}
	}
}

// weights looks at the shares of new connections, at a moment at which nothing moves: nobody who may not has one, and a
// staged generation's is what it was given.
func (c *chain) weights(m *master) {
	stage := m.stage.Load()
	if m.inv == nil || m.state.get() == Frozen {
		return
	}
	m.gate.mu.Lock()
	defer m.gate.mu.Unlock()
	if m.gate.inv == nil || m.gate.beside == nil {
		return
	}
	if stage == nil {
		c.locked(func() { c.fault("shares of a generation that is not staged") })
		return
	}
	sum, staged, own := 0, 0, 0
	for _, l := range m.gate.lanes() {
		sum += l.Weight()
		if m.gate.beside.lanes[l.Name()] > 0 {
			staged += l.Weight()
		} else if l.Weight() > 0 && m.gate.admitted[l.Name()] {
			own++
		}
	}
	if percent := m.gate.beside.percent; percent > 0 && !stage.Spared() {
		c.locked(func() { c.fault("a share of %d %% for workers that nobody would drain", percent) })
	} else if own > 0 && staged > 0 && staged*100 != percent*sum {
		c.locked(func() { c.fault("%d of %d instead of %d %%", staged, sum, percent) })
	}
}

// following is the master that has taken over, if one has.
func (s *reign) following() *reign {
	select {
	case <-s.over:
		return s.next
	default:
		return nil
	}
}

// settle lets what is under way end, and looks whether it has come to what was asked for.
func (c *chain) settle() {
	for range 40 {
		c.command(command{Verb: verbAbort}) // what waits for an order
		<-time.After(10 * time.Second)
		m := c.inCharge()
		if m == nil || m.state.get() == Serving && c.complete(m) {
			return
		}
	}
	if m := c.inCharge(); m != nil && !c.disturbed {
		c.locked(func() { c.fault("there are not %d workers that are ready: %+v", c.wanted, m.pool.Slots()) })
	}
}

func (c *chain) complete(m *master) bool {
	slots := m.pool.Slots()
	return len(slots) == c.wanted && slices.IndexFunc(slots, func(s workerpool.SlotInfo) bool { return !s.Ready }) < 0
}

func (c *chain) finish(ending string) {
	if ending != "TERM, TERM" {
		c.settle()
	}
	c.locked(func() { c.stops = true })
	limit := c.cfg.DrainTimeout + c.cfg.Settle + c.cfg.StartTimeout
	if ending == "QUIT" {
		c.signal(syscall.SIGQUIT)
		limit = time.Second
	} else {
		c.signal(syscall.SIGTERM)
	}
	if ending == "TERM, TERM" {
		<-time.After(time.Second)
		c.signal(syscall.SIGQUIT) // what the parent makes of the second one
		limit = time.Second
	}
	c.end(limit)
	for _, p := range c.alive() {
		c.locked(func() { c.fault("%d runs on", p.pid); p.exit(pidfd.Status{}) })
	}
	<-c.delivered
	for s := c.first; s != nil; s = s.next {
		s.bury()
	}
	for _, p := range c.programs {
		if !p.reaped {
			c.fault("%d was not waited for", p.pid)
		}
	}
	for _, s := range c.left {
		s.bury()
	}
	for _, f := range c.store.files {
		f.Close()
	}
}

// end waits for the last master's end.
func (c *chain) end(limit time.Duration) {
	late := time.After(limit)
	for s := c.first; s != nil; s = s.next {
		select {
		case <-s.over:
		case <-late:
			c.locked(func() { c.fault("master %d (%s) has not stopped in %v", s.m.generation, s.m.state.get(), limit) })
			for _, p := range c.alive() {
				p.die(pidfd.Status{})
			}
			<-s.over
		}
	}
}
