package upgrade

import (
	"cmp"
	"context"
	"slices"
	"time"

	"go.uber.org/zap"
)

// Defaults of WatchOptions, and the bounds of how long a hung lane is left out.
const (
	DefaultWatchInterval = 20 * time.Millisecond
	DefaultStallWindow   = 100 * time.Millisecond

	maxTimeOut     = 10 * time.Second // a lane that hangs again and again is tried that often at least
	forgiveAfter   = 30 * time.Second // a lane that served this long is as good as new
	minStallChecks = 3                // readings within the window that must agree
	calmAfter      = 10               // readings in a row that found nothing, before the watcher waits to be told
)

// WatchOptions are the parts of Watch that may be chosen. The zero value works.
type WatchOptions struct {
	// Interval is the time between two readings of all lanes, each some 2 µs. Default: DefaultWatchInterval.
	Interval time.Duration
	// Window is how long a lane's accept queue may hold something without ever getting shorter before its worker counts as
	// hung. Default: DefaultStallWindow.
	Window time.Duration
	// Stray is told, at each reading while it is so, of a free lane in whose queue connections wait. It is not called
	// while its address has no active lane, as passing them on would lead back to where they are. It must not block,
	// and must not call the inventory. Default: nobody is told.
	Stray func(lane *Lane, queue int)
	// Stalled is told when a lane is taken out of the program (out) because its worker hangs, and when it is put back. The
	// same rules hold for it. Default: nobody is told.
	Stalled func(lane *Lane, out bool)
}

// LaneReading is what is known of a lane, for status.
type LaneReading struct {
	Name    string    `json:"name"`
	Address string    `json:"address"`
	Index   int       `json:"index"`
	State   LaneState `json:"state"`
	Weight  int       `json:"weight,omitempty"`
	Queue   int       `json:"queue"`         // connections that wait to be accepted, those that the client gave up included; 0 for unix
	Backlog int       `json:"backlog"`       // how many may wait; 0 where the kernel does not tell
	Out     bool      `json:"out,omitempty"` // taken out of the program as its worker does not accept
}

// Readings returns a fresh reading of every lane, in the order of addresses and indexes.
func (inv *Inventory) Readings() []LaneReading {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	var all []LaneReading
	for _, g := range inv.groups {
		for i, l := range g.lanes {
			r, _ := read(l.file) // zeros where the kernel does not tell
			all = append(all, LaneReading{
				Name: l.name, Address: g.address.Name, Index: i, State: l.state, Weight: l.weight,
				Queue: r.queue, Backlog: r.backlog, Out: l.out,
			})
		}
	}
	return all
}

// Watch reads the accept queues of all lanes over and over until ctx ends, and then returns nil. It
//   - takes an active lane out of the program whose queue held something and never got shorter for a while: its worker
//     hangs. The lane comes back when its queue is empty, but not before a time that grows each time it hangs again.
//     Never more than half of an address's active lanes are out, so a single one never is;
//   - notices that somebody called shutdown(2) on a lane, which takes it out of the kernel's group for all processes, and
//     puts the lane and the order of indexes right again;
//   - reports what waits at lanes that nobody serves.
//
// After some readings that found nothing it waits until the kernel says that something has come: where there are no new
// connections, watching costs nothing.
//
// Only the master in charge watches.
func (inv *Inventory) Watch(ctx context.Context, opts WatchOptions) error {
	interval, window := cmp.Or(opts.Interval, DefaultWatchInterval), cmp.Or(opts.Window, DefaultStallWindow)
	rules := make(map[*group]*stallRule)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	arrivals := newArrivals()
	defer arrivals.close()
	found := 0 // readings since something was found
	stirred := func() {
		if found >= calmAfter {
			tick.Reset(interval)
		}
		found = 0
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-inv.stirred:
			stirred()
		case <-arrivals.c:
			stirred()
		case now := <-tick.C:
			places, calm := inv.watchAll(rules, now, window, opts)
			if !calm {
				found = 0
				continue
			}
			if found++; found >= calmAfter && arrivals.await(places) {
				tick.Stop()
			}
		}
	}
}

// lookout is a lane of which the watcher wants to be told that it listens no more, and of arrivals too or not.
type lookout struct {
	lane     *Lane
	arrivals bool
}

// watchAll takes one reading of all addresses. It returns what to be told of next, and whether nothing was found.
func (inv *Inventory) watchAll(rules map[*group]*stallRule, now time.Time, window time.Duration, opts WatchOptions) (places []lookout, calm bool) {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	calm = true
	for _, g := range inv.groups {
		if rules[g] == nil {
			rules[g] = newStallRule(window)
		}
		active, groupCalm := inv.watchGroup(g, rules[g], now, opts)
		calm = calm && groupCalm
		if g.address.Network == NetworkUnix {
			continue // it tells nothing
		}
		for _, l := range g.lanes {
			// A single active lane is never taken out, and nothing is done for those that start or drain.
			heeds := g.mode != ModePlain && (l.state == LaneFree || l.state == LaneActive && active > 1)
			places = append(places, lookout{l, heeds})
		}
	}
	return places, calm
}

// stir has the watcher look again, if it waits: what it waits for may not be told any more, or is not all.
func (inv *Inventory) stir() {
	select {
	case inv.stirred <- struct{}{}:
	default:
	}
}

// watchGroup takes one reading of an address. It returns how many lanes are active, and whether nothing was found. The
// lock is held.
func (inv *Inventory) watchGroup(g *group, rule *stallRule, now time.Time, opts WatchOptions) (active int, calm bool) {
	calm = true
	var samples []sample
	var strays []sample
	var shut []*Lane
	for _, l := range g.lanes {
		r, err := read(l.file)
		switch {
		case err != nil: // a unix socket does not tell
		case r.state != tcpListening:
			shut = append(shut, l)
			calm = false
		case l.state == LaneActive:
			samples = append(samples, sample{l, r.queue})
		case l.state == LaneFree && r.queue > 0 && !g.marked(l):
			strays = append(strays, sample{l, r.queue})
			calm = false
		}
	}
	if len(shut) > 0 {
		inv.repair(g, shut)
	}
	if g.mode == ModePlain || len(samples) == 0 {
		return len(samples), calm
	}
	if opts.Stray != nil {
		for _, s := range strays {
			opts.Stray(s.lane, s.queue)
		}
	}
	for _, s := range samples {
		calm = calm && !s.lane.out && (s.queue == 0 || len(samples) == 1)
	}
	changed := rule.decide(now, samples)
	if len(changed) == 0 {
		return len(samples), calm
	}
	for _, l := range changed {
		l.out = !l.out
	}
	if err := inv.reapply(g); err != nil {
		inv.log.Warn("program not replaced", zap.String("listener", g.address.Name), zap.Error(err))
		for _, l := range changed {
			l.out = !l.out
		}
		return len(samples), false
	}
	for _, l := range changed {
		if l.out {
			inv.log.Debug("worker accepts no connections: others get them", zap.String("lane", l.name))
		} else {
			inv.log.Debug("worker accepts connections again", zap.String("lane", l.name))
		}
		if opts.Stalled != nil {
			opts.Stalled(l, l.out)
		}
	}
	return len(samples), false
}

// repair follows what the kernel did to the order of a group when somebody called shutdown(2) on lanes: the last lane
// took the index of each. It makes them listen again, which appends them. What was queued on them is lost.
func (inv *Inventory) repair(g *group, shut []*Lane) {
	log := inv.log.With(zap.String("listener", g.address.Name))
	if len(shut) > 1 {
		log.Warn("several lanes were shut down at once: their order is a guess until gapless is restarted")
	}
	for _, l := range shut {
		log.Warn("a process called shutdown on an inherited listening socket: what was queued there is lost", zap.String("lane", l.name))
		i, last := g.index(l), len(g.lanes)-1
		g.lanes[i] = g.lanes[last]
		g.lanes = g.lanes[:last]
	}
	if len(g.lanes) > 0 {
		if err := inv.reapply(g); err != nil {
			log.Warn("program not replaced", zap.Error(err))
		}
	}
	for _, l := range shut {
		if err := listenAgain(l.file); err != nil {
			// It stays in the list, at a wrong index, as a lane must never be forgotten; the next reading tries again.
			log.Error("lane does not listen again", zap.String("lane", l.name), zap.Error(err))
		}
		g.lanes = append(g.lanes, l)
	}
	inv.tell()
	if err := inv.reapply(g); err != nil {
		log.Warn("program not replaced", zap.Error(err))
	}
}

// sample is one reading of an active lane.
type sample struct {
	lane  *Lane
	queue int
}

// stallRule decides which lanes of one address hang. It does nothing but decide.
type stallRule struct {
	window time.Duration
	last   time.Time
	lanes  map[*Lane]*stallState
}

type stallState struct {
	queue   int       // at the last reading
	since   time.Time // from when on the queue has held something and not become shorter; zero if it is empty
	checks  int       // readings since then
	out     bool
	changed time.Time     // when it went out or came back; zero if it never did
	timeOut time.Duration // how long it stays out at least
}

func newStallRule(window time.Duration) *stallRule {
	return &stallRule{window: window, lanes: make(map[*Lane]*stallState)}
}

// decide takes readings of all active lanes and returns those that go out or come back.
func (r *stallRule) decide(now time.Time, samples []sample) (changed []*Lane) {
	// A watcher that did not run knows nothing about the time in between: the machine may have slept, the workers too.
	blind := !r.last.IsZero() && now.Sub(r.last) > r.window
	r.last = now
	present := make(map[*Lane]*stallState, len(samples))
	var out, hung []*Lane
	for _, s := range samples {
		state := r.lanes[s.lane]
		if state == nil {
			// A lane that another watcher took out, before an upgrade, comes back by the same rule.
			state = &stallState{out: s.lane.out, changed: now, timeOut: r.window}
			if !state.out {
				state.changed = time.Time{}
			}
		}
		if state.out && !s.lane.out {
			*state = stallState{} // a new worker has the lane
		}
		present[s.lane] = state
		state.observe(now, s.queue, blind)
		switch {
		case state.out && s.queue == 0 && now.Sub(state.changed) >= state.timeOut:
			state.back(now)
			changed = append(changed, s.lane)
		case state.out:
			out = append(out, s.lane)
		case state.checks >= minStallChecks && now.Sub(state.since) >= r.window:
			hung = append(hung, s.lane)
		}
	}
	r.lanes = present
	most := len(samples) / 2
	byAge := func(a, b *Lane) int { return present[a].since.Compare(present[b].since) }
	slices.SortStableFunc(hung, byAge)
	for _, l := range hung[:max(0, min(len(hung), most-len(out)))] {
		present[l].takeOut(now, r.window)
		changed = append(changed, l)
	}
	// Lanes may have left since: then the one that is out longest gets another chance.
	slices.SortStableFunc(out, func(a, b *Lane) int { return present[a].changed.Compare(present[b].changed) })
	for _, l := range out[:max(0, len(out)-most)] {
		present[l].back(now)
		changed = append(changed, l)
	}
	return changed
}

func (s *stallState) observe(now time.Time, queue int, blind bool) {
	switch {
	case queue == 0:
		s.since, s.checks = time.Time{}, 0
	case s.since.IsZero() || queue < s.queue || blind:
		s.since, s.checks = now, 0
	default:
		s.checks++
	}
	s.queue = queue
}

func (s *stallState) takeOut(now time.Time, window time.Duration) {
	if s.changed.IsZero() || now.Sub(s.changed) >= forgiveAfter {
		s.timeOut = window
	} else {
		s.timeOut = min(2*s.timeOut, maxTimeOut)
	}
	s.out, s.changed = true, now
}

func (s *stallState) back(now time.Time) {
	s.out, s.changed, s.since, s.checks = false, now, time.Time{}, 0
}
