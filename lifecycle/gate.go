package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"gapless/internal/packet"
	"gapless/upgrade"
	"gapless/workerpool"

	"go.uber.org/zap"
)

// knockLimit bounds the connect of a knock: the kernel answers at once unless the worker's queue is full.
const knockLimit = 200 * time.Millisecond

// gate gives workers their lanes and lanes their share of new connections. It is the pool's Gate.
//
// Before the commit of an upgrade the inventory belongs to the master in charge: the gate then only knows the lanes
// that it was granted, and admits nobody. takeCharge gives it the inventory.
type gate struct {
	generation int
	log        *zap.Logger
	ceiling    time.Duration // of settling

	mu      sync.Mutex
	inv     *upgrade.Inventory             // nil before the commit
	names   []string                       // of the addresses, in order
	granted map[string][]workerpool.Socket // by address: lanes from the master in charge that no worker has
	files   map[string]*os.File            // by lane: all that were granted
	shared  map[string]workerpool.Socket   // by address: the one lane, where workers do not have their own
	serving map[string]int                 // by lane: how many workers of all generations have it
	refused bool                           // the kernel lets nobody connect any more
	// admitted are the lanes at which a worker of this generation is ready and has not been told to drain.
	admitted map[string]bool
	beside   *share // the generation that is staged beside this one; nil: none is
	left     bool   // the lanes are another gapless's
}

func newGate(generation int, inv *upgrade.Inventory, names []string, ceiling time.Duration, log *zap.Logger) *gate {
	return &gate{generation: generation, inv: inv, names: names, ceiling: ceiling, log: log,
		granted: make(map[string][]workerpool.Socket), files: make(map[string]*os.File),
		shared: make(map[string]workerpool.Socket), serving: make(map[string]int), admitted: make(map[string]bool)}
}

// grant adds lanes for workers to come. shared says that all workers of the generation have the one lane.
func (g *gate) grant(address string, sockets []workerpool.Socket, shared bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range sockets {
		g.files[s.Lane] = s.File
	}
	if shared && len(sockets) > 0 {
		g.shared[address] = sockets[0]
		return
	}
	g.granted[address] = append(g.granted[address], sockets...)
}

// received returns the descriptors of the lanes that were granted, by lane. They are the caller's from then on.
func (g *gate) received() map[string]*os.File {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.files
}

// Sockets returns one socket for each address.
func (g *gate) Sockets(int) ([]workerpool.Socket, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var got []workerpool.Socket
	for _, name := range g.names {
		s, err := g.take(name)
		if err != nil {
			return nil, err
		}
		got = append(got, s)
	}
	for _, s := range got {
		g.serving[s.Lane]++
	}
	return got, nil
}

func (g *gate) take(address string) (workerpool.Socket, error) {
	if s, ok := g.shared[address]; ok {
		if !g.isFree(s.Lane) {
			return s, nil
		}
		// All that shared it have died while others of the address, as of a staged generation, were in the program: it is
		// anybody's now.
		delete(g.shared, address)
	}
	if g.inv == nil {
		granted := g.granted[address]
		if len(granted) == 0 {
			return workerpool.Socket{}, fmt.Errorf("the master in charge granted too few lanes of %s", address)
		}
		g.granted[address] = granted[1:]
		return granted[0], nil
	}
	// A lane that stayed in the program after its worker's death, because it was the last one, comes first:
	// connections wait there.
	for _, l := range g.inv.Lanes(address) {
		if l.State() == upgrade.LaneActive && g.serving[l.Name()] == 0 {
			return socketOf(l), nil
		}
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

// isFree tells whether a lane may be taken by anybody. The lock is held.
func (g *gate) isFree(lane string) bool {
	if g.inv == nil {
		return false // granted for this generation
	}
	l := g.inv.Lane(lane)
	return l != nil && l.State() == upgrade.LaneFree
}

func socketOf(l *upgrade.Lane) workerpool.Socket {
	return workerpool.Socket{Name: l.Address().Name, Lane: l.Name(), Inode: l.Inode(), File: l.File()}
}

// Admit puts the worker's lanes into the program, and takes those out that only waited for a worker.
func (g *gate) Admit(w workerpool.Info) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.Generation != g.generation || g.left {
		return nil
	}
	for _, name := range w.Lanes {
		g.admitted[name] = true
	}
	if g.inv == nil {
		return nil // before the commit: takeCharge admits all at once
	}
	if err := g.steer(); err != nil {
		return err
	}
	return g.sweep()
}

// takeCharge gives the gate the inventory, and this generation all new connections, by one change of each program.
// old are the workers that served so far.
func (g *gate) takeCharge(inv *upgrade.Inventory, old []workerpool.Info) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inv = inv
	mine := make(map[string]int) // not those of a worker that has died in the window and is not ready again
	for lane := range g.admitted {
		mine[lane] = 1
	}
	for address, s := range g.shared {
		if l := inv.Lane(s.Lane); l != nil {
			g.shared[address] = socketOf(l)
		}
	}
	for _, name := range g.names {
		// With one worker the grant did not tell that all workers to come shall share it.
		if _, known := g.shared[name]; known || inv.Mode(name) == upgrade.ModeSteered {
			continue
		}
		for _, l := range inv.Lanes(name) {
			if mine[l.Name()] > 0 {
				g.shared[name] = socketOf(l)
			}
		}
	}
	for _, w := range old {
		for _, lane := range w.Lanes {
			g.serving[lane]++
		}
	}
	var withdraw []string
	for _, l := range g.lanes() {
		if mine[l.Name()] == 0 && l.State() == upgrade.LaneActive {
			withdraw = append(withdraw, l.Name())
		}
	}
	if err := inv.Switch(mine, withdraw); err != nil && !errors.Is(err, upgrade.ErrLastLane) {
		return err
	}
	g.steerPreview(nil) // what was staged is what serves
	return g.sweep()
}

// lanes returns all lanes. The lock is held, and the inventory there.
func (g *gate) lanes() []*upgrade.Lane {
	var all []*upgrade.Lane
	for _, a := range g.inv.Addresses() {
		all = append(all, g.inv.Lanes(a.Name)...)
	}
	return all
}

// sweep takes the lanes out of the program that no worker has, and frees them: whoever still arrives there is passed on.
func (g *gate) sweep() error {
	var errs []error
	for _, l := range g.lanes() {
		if g.serving[l.Name()] == 0 && l.State() != upgrade.LaneFree {
			errs = append(errs, g.vacate(l.Name()))
		}
	}
	return errors.Join(errs...)
}

// vacate frees a lane. The last active one of its address stays in the program: connections that wait for the next
// worker are better off than those that go nowhere.
func (g *gate) vacate(lane string) error {
	if g.left {
		return nil
	}
	if l := g.inv.Lane(lane); l.State() == upgrade.LaneActive {
		if err := g.inv.Switch(nil, []string{lane}); errors.Is(err, upgrade.ErrLastLane) {
			return nil
		} else if err != nil {
			return err
		}
		if l.State() == upgrade.LaneActive { // a plain one
			return nil
		}
	}
	return g.inv.Release(lane)
}

// Withdraw takes the worker's lanes out of the program, unless others serve them too, and waits until what it was given
// is read.
func (g *gate) Withdraw(w workerpool.Info) {
	g.mu.Lock()
	inv := g.inv
	if inv == nil || g.left {
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
		if g.serving[name] == 1 {
			delete(g.admitted, name)
			if l.State() == upgrade.LaneActive {
				out = append(out, name)
			}
		}
		lanes = append(lanes, l)
	}
	// The last lanes of an address stay in: that is the full stop, where connections are taken to the end.
	err := inv.Switch(nil, out)
	if err != nil && !errors.Is(err, upgrade.ErrLastLane) {
		g.log.Error("Lanes cannot be withdrawn", zap.Strings("lanes", out), zap.Error(err))
	}
	g.rebalance()
	refused := g.refused
	g.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), g.ceiling)
	defer cancel()
	until, _ := ctx.Deadline()
	for _, l := range lanes {
		if l.State() == upgrade.LaneActive && !refused {
			continue // it still gets connections, so that it never would be empty
		}
		reader := w.PID
		if w.Handoff {
			reader = 0 // what it has accepted it reads or hands on; only what nobody has accepted counts
		}
		if _, err := inv.Settle(ctx, l, reader, time.Until(until)); err != nil && ctx.Err() == nil {
			g.log.Warn("Lane cannot be watched while it empties", zap.String("lane", l.Name()), zap.Error(err))
		}
	}
}

// Release follows a worker's end: a lane that no other worker has is free.
func (g *gate) Release(w workerpool.Info, _ workerpool.State) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, lane := range w.Lanes {
		if g.serving[lane]--; g.serving[lane] > 0 {
			continue
		}
		delete(g.serving, lane)
		delete(g.admitted, lane)
		switch {
		case g.inv != nil:
			if err := g.vacate(lane); err != nil {
				g.log.Error("Lane of a worker that has gone cannot be freed", zap.String("lane", lane), zap.Error(err))
			}
		case i < len(g.names):
			// Before the commit, for the worker's replacement.
			if _, shared := g.shared[g.names[i]]; !shared {
				s := workerpool.Socket{Name: g.names[i], Lane: lane, File: g.files[lane], Inode: w.Inodes[i]}
				g.granted[g.names[i]] = append(g.granted[g.names[i]], s)
			}
		}
	}
	if g.inv != nil {
		g.rebalance()
	}
}

// refuse has the kernel turn new clients away, for a full stop.
func (g *gate) refuse() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.inv.Refuse(); err != nil {
		g.log.Warn("New clients are let in until the workers have been told to stop", zap.Error(err))
		return
	}
	g.refused = true
}

// knock connects to one lane alone, by a rule of the address's program.
func (g *gate) knock(address, lane string) (*os.File, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	dialer, network, addr, err := g.inv.KnockDialer(address, knockLimit)
	if err != nil {
		return nil, err
	}
	if err := g.inv.SetKnock(address, lane); err != nil {
		return nil, err
	}
	conn, err := dialer.Dial(network, addr)
	err = errors.Join(err, g.inv.SetKnock(address, ""))
	if err != nil {
		if conn != nil {
			conn.Close()
		}
		return nil, fmt.Errorf("connect to lane %s: %w", lane, err)
	}
	defer conn.Close()
	return packet.Dup(conn.(*net.TCPConn), "knock at "+lane)
}

// lend takes lanes for a generation that is starting; returnLanes takes them back if it fails.
func (g *gate) lend(address string, count int) (names []string, lanes []*upgrade.Lane, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	lanes, err = g.inv.Take(address, count)
	for _, l := range lanes {
		names = append(names, l.Name())
		g.serving[l.Name()]++ // so that nobody sweeps it
	}
	return names, lanes, err
}

// returnLanes takes back lanes whose generation has failed.
func (g *gate) returnLanes(names []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, name := range names {
		if g.serving[name]--; g.serving[name] > 0 {
			continue
		}
		delete(g.serving, name)
		if err := g.vacate(name); err != nil {
			g.log.Error("Lane of an aborted upgrade cannot be freed", zap.String("lane", name), zap.Error(err))
		}
	}
}
