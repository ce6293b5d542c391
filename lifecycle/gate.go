package lifecycle

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"

	"gapless/upgrade"
	"gapless/workerpool"

	"go.uber.org/zap"
)

// gate gives workers their lanes and lanes their share of new connections. It is the pool's Gate.
//
// Before the commit of an upgrade the inventory belongs to the master in charge: the gate then only knows the lanes
// that it was granted, and nothing is admitted. takeCharge gives it the inventory.
type gate struct {
	generation int
	log        *zap.Logger
	settle     func(w workerpool.Info, lanes []*upgrade.Lane) // waits until what the worker was given is read

	mu    sync.Mutex
	inv   *upgrade.Inventory // nil before the commit
	names []string           // of the addresses, in order
	// lanes of this generation by slot, one for each address. A slot keeps its lanes over restarts.
	slots map[int][]workerpool.Socket
	// shared holds the one lane of an address whose mode is not steered.
	shared map[string]workerpool.Socket
	// granted holds the lanes that the master in charge gave us before the commit and no slot has taken.
	granted map[string][]workerpool.Socket
	// serving counts, by lane, the workers of all generations that have it.
	serving map[string]int
}

func newGate(generation int, inv *upgrade.Inventory, names []string, log *zap.Logger) *gate {
	return &gate{generation: generation, inv: inv, names: names, log: log,
		slots: make(map[int][]workerpool.Socket), shared: make(map[string]workerpool.Socket),
		granted: make(map[string][]workerpool.Socket), serving: make(map[string]int)}
}

// grant adds lanes for workers to come. shared says that all workers of the generation share the one lane.
func (g *gate) grant(address string, sockets []workerpool.Socket, shared bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if shared && len(sockets) > 0 {
		g.shared[address] = sockets[0]
		return
	}
	g.granted[address] = append(g.granted[address], sockets...)
}

// Sockets returns one socket for each address.
func (g *gate) Sockets(slot int) ([]workerpool.Socket, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if have := g.slots[slot]; have != nil {
		if g.inv != nil {
			for _, s := range have {
				// After a death the lane is out of the program; what is queued on it is the replacement's.
				if err := g.inv.Reuse(s.Lane); err != nil {
					return nil, err
				}
			}
		}
		g.count(have, 1)
		return have, nil
	}
	var got []workerpool.Socket
	for _, name := range g.names {
		s, err := g.take(name)
		if err != nil {
			return nil, err
		}
		got = append(got, s)
	}
	g.slots[slot] = got
	g.count(got, 1)
	return got, nil
}

func (g *gate) take(address string) (workerpool.Socket, error) {
	if s, ok := g.shared[address]; ok {
		return s, nil
	}
	if granted := g.granted[address]; len(granted) > 0 {
		g.granted[address] = granted[1:]
		return granted[0], nil
	}
	if g.inv == nil {
		return workerpool.Socket{}, fmt.Errorf("the master in charge granted too few lanes of %s", address)
	}
	lanes, err := g.inv.Take(address, 1)
	if err != nil {
		return workerpool.Socket{}, err
	}
	s := socketOf(lanes[0])
	if g.inv.Mode(address) != upgrade.ModeSteered {
		g.shared[address] = s
	}
	return s, nil
}

func socketOf(l *upgrade.Lane) workerpool.Socket {
	return workerpool.Socket{Name: l.Address().Name, Lane: l.Name(), Inode: l.Inode(), File: l.File()}
}

func (g *gate) count(sockets []workerpool.Socket, by int) {
	for _, s := range sockets {
		g.serving[s.Lane] += by
	}
}

// Admit puts the worker's lanes into the program.
func (g *gate) Admit(w workerpool.Info) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inv == nil || w.Generation != g.generation {
		return nil // before the commit: takeCharge admits all at once
	}
	activate := make(map[string]int)
	for _, name := range w.Lanes {
		activate[name] = 1
	}
	return g.inv.Switch(activate, nil)
}

// received returns the descriptors of the lanes that were granted, by lane.
func (g *gate) received() map[string]*os.File {
	g.mu.Lock()
	defer g.mu.Unlock()
	files := make(map[string]*os.File)
	for _, sockets := range g.slots {
		for _, s := range sockets {
			files[s.Lane] = s.File
		}
	}
	for _, sockets := range g.granted {
		for _, s := range sockets {
			files[s.Lane] = s.File
		}
	}
	return files
}

// takeCharge gives the gate the inventory, and this generation all new connections, by one change of each program.
// old are the workers that served so far.
func (g *gate) takeCharge(inv *upgrade.Inventory, old []workerpool.Info) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inv = inv
	mine := make(map[string]int)
	for slot, sockets := range g.slots {
		for i, s := range sockets {
			l := inv.Lane(s.Lane)
			if l == nil {
				return fmt.Errorf("lane %s of worker %d: %w", s.Lane, slot, upgrade.ErrUnknown)
			}
			sockets[i] = socketOf(l) // the inventory's copy of the descriptor outlives the granted one
			mine[s.Lane] = 1
		}
	}
	for i, address := range g.names {
		if inv.Mode(address) != upgrade.ModeSteered && len(g.slots) > 0 {
			g.shared[address] = g.slots[0][i] // of whatever slot: they have the same
		}
	}
	for _, w := range old {
		for _, lane := range w.Lanes {
			g.serving[lane]++
		}
	}
	var withdraw []string
	for _, a := range inv.Addresses() {
		for _, l := range inv.Lanes(a.Name) {
			if _, ours := mine[l.Name()]; !ours && l.State() == upgrade.LaneActive {
				withdraw = append(withdraw, l.Name())
			}
		}
	}
	if err := inv.Switch(mine, withdraw); err != nil && !errors.Is(err, upgrade.ErrLastLane) {
		return err
	}
	g.sweep()
	return nil
}

// sweep frees lanes that nobody has: of workers that died while nobody could act on it.
func (g *gate) sweep() {
	for _, a := range g.inv.Addresses() {
		for _, l := range g.inv.Lanes(a.Name) {
			if s := l.State(); g.serving[l.Name()] == 0 && (s == upgrade.LaneDraining || s == upgrade.LaneStarting) {
				g.release(l.Name())
			}
		}
	}
}

// Withdraw takes the worker's lanes out of the program, unless others serve them too, and waits until what it was given
// is read.
func (g *gate) Withdraw(w workerpool.Info) {
	g.mu.Lock()
	inv := g.inv
	if inv == nil {
		g.mu.Unlock()
		return
	}
	var out []string
	var lanes []*upgrade.Lane
	for _, name := range w.Lanes {
		l := inv.Lane(name)
		if l == nil || inv.Mode(l.Address().Name) == upgrade.ModePlain {
			continue
		}
		if l.State() == upgrade.LaneActive && g.serving[name] == 1 {
			out = append(out, name)
		}
		lanes = append(lanes, l)
	}
	// The last lanes of an address stay in: that is the full stop, where connections are taken to the end.
	if err := inv.Switch(nil, out); err != nil && !errors.Is(err, upgrade.ErrLastLane) {
		g.log.Error("lanes cannot be withdrawn", zap.Strings("lanes", out), zap.Error(err))
	}
	g.mu.Unlock()
	if g.settle != nil && len(lanes) > 0 {
		g.settle(w, lanes)
	}
}

// Release follows a worker's end. A lane of a slot stays the slot's for the replacement; that of a worker that was
// drained is free.
func (g *gate) Release(w workerpool.Info, was workerpool.State) {
	g.mu.Lock()
	defer g.mu.Unlock()
	drained := was == workerpool.Draining || w.Generation != g.generation
	if sockets := g.slots[w.Slot]; drained && w.Generation == g.generation &&
		slices.EqualFunc(sockets, w.Lanes, func(s workerpool.Socket, lane string) bool { return s.Lane == lane }) {
		delete(g.slots, w.Slot)
	}
	for _, lane := range w.Lanes {
		if g.serving[lane]--; g.serving[lane] > 0 {
			continue
		}
		delete(g.serving, lane)
		if g.inv == nil {
			continue
		}
		// Dead or drained, it takes no connections any more.
		if l := g.inv.Lane(lane); l != nil && l.State() == upgrade.LaneActive {
			if err := g.inv.Switch(nil, []string{lane}); err != nil && !errors.Is(err, upgrade.ErrLastLane) {
				g.log.Error("lane of a dead worker cannot be withdrawn", zap.String("lane", lane), zap.Error(err))
			}
		}
		if drained {
			g.release(lane)
		}
	}
}

func (g *gate) release(lane string) {
	if l := g.inv.Lane(lane); l == nil || l.State() == upgrade.LaneActive || l.State() == upgrade.LaneFree {
		return // the last active one stays in the program
	}
	if err := g.inv.Release(lane); err != nil {
		g.log.Error("lane cannot be freed", zap.String("lane", lane), zap.Error(err))
	}
}

// lend opens lanes for a generation that is starting, and remembers nothing: take back with returnLanes.
func (g *gate) lend(address string, count int) (names []string, lanes []*upgrade.Lane, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	lanes, err = g.inv.Take(address, count)
	for _, l := range lanes {
		names = append(names, l.Name())
	}
	return names, lanes, err
}

// returnLanes takes back lanes whose generation has failed.
func (g *gate) returnLanes(names []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, name := range slices.Compact(slices.Sorted(slices.Values(names))) {
		if g.serving[name] == 0 {
			g.release(name)
		}
	}
}

// inService returns the lanes that workers have, for logs and tests.
func (g *gate) inService() map[string]int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.serving)
}
