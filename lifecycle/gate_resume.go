package lifecycle

import (
	"errors"

	"gapless/upgrade"
	"gapless/workerpool"
)

// revive has the workers to come share the lane where clients of a gapless wait that was killed as a whole, where they do not
// have lanes of their own. (Where they do, take gives them those first.)
func (g *gate) revive() {
	if g.inv == nil {
		return // of a candidate
	}
	for _, l := range g.lanes() {
		address := l.Address().Name
		if _, known := g.shared[address]; !known && g.inv.Mode(address) != upgrade.ModeSteered && l.State() == upgrade.LaneActive {
			g.shared[address] = socketOf(l)
		}
	}
}

// leave changes no program any more: the lanes are another gapless's business, which may serve already.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left = true
}

// resume follows a master that died: all that are ready of this generation share the new connections, and nobody else.
func (g *gate) resume(workers []workerpool.Info) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	ready := make(map[string]int)
	for _, w := range workers {
		for _, name := range w.Lanes {
			l := g.inv.Lane(name)
			if l == nil {
				continue
			}
			g.serving[name]++
			if w.Generation != g.generation || w.State > workerpool.Ready {
				continue
			}
			if w.State == workerpool.Ready {
				ready[name] = 1
				g.admitted[name] = true
			}
			if address := l.Address().Name; g.inv.Mode(address) != upgrade.ModeSteered {
				g.shared[address] = socketOf(l)
			}
		}
	}
	var withdraw []string
	for _, l := range g.lanes() {
		if ready[l.Name()] == 0 && l.State() == upgrade.LaneActive {
			withdraw = append(withdraw, l.Name())
		}
	}
	if err := g.inv.Switch(ready, withdraw); err != nil && !errors.Is(err, upgrade.ErrLastLane) {
		return err
	}
	g.steerPreview(nil) // what was staged has ended itself
	return g.sweep()
}
