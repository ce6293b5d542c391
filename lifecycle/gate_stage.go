package lifecycle

import (
	"errors"
	"fmt"

	"gapless/upgrade"

	"go.uber.org/zap"
)

// share is what the gate knows of a generation that is staged beside its own.
type share struct {
	lanes   map[string]int // all that its workers have or had, and how many of them are ready there
	percent int            // of new connections that it gets, at each address
}

// ready returns for each lane whether a worker is ready there.
func (s *share) ready() map[string]bool {
	if s == nil {
		return nil
	}
	all := make(map[string]bool, len(s.lanes))
	for name, n := range s.lanes {
		all[name] = n > 0
	}
	return all
}

// maxWeightSum is what the weights of an address may add up to: beyond it the program's choice would not be even.
const maxWeightSum = 1 << 24

// splitWeights returns the weight of each of own and of each of staged lanes, so that the staged ones together get percent
// of all new connections. It is exact unless there are so many lanes that the weights would become too large; then the
// share is right to a part in some thousand.
func splitWeights(percent, own, staged int) (ofOwn, ofStaged int) {
	switch {
	case staged == 0 || percent <= 0:
		return 1, 0
	case own == 0 || percent >= 100:
		return 0, 1
	}
	a, b := (100-percent)*staged, percent*own
	if d := gcd(a, b); d > 1 {
		a, b = a/d, b/d
	}
	if sum := a*own + b*staged; sum > maxWeightSum {
		f := float64(sum) / (maxWeightSum - float64(own+staged)) // each is rounded by less than 1
		a, b = max(1, int(float64(a)/f+0.5)), max(1, int(float64(b)/f+0.5))
	}
	return a, b
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// weights returns what each ready lane of an address is to have, 0: nothing. The lock is held.
func (g *gate) weights(address string) map[string]int {
	var own, staged []string
	for _, l := range g.inv.Lanes(address) {
		if g.admitted[l.Name()] {
			own = append(own, l.Name())
		}
		if g.beside != nil && g.beside.lanes[l.Name()] > 0 {
			staged = append(staged, l.Name())
		}
	}
	percent := 0
	if g.beside != nil {
		percent = g.beside.percent
	}
	ofOwn, ofStaged := splitWeights(percent, len(own), len(staged))
	all := make(map[string]int, len(own)+len(staged))
	for _, name := range own {
		all[name] = ofOwn
	}
	for _, name := range staged {
		all[name] = ofStaged
	}
	return all
}

// steer gives every lane the weight that it should have, by one change of each address's program, and is the only way in
// which a ready lane gets one. A lane that nobody is ready at, and that only stayed in because all of its address were like
// that, leaves as soon as somebody is ready elsewhere: new clients need not wait for its worker. The lock is held.
func (g *gate) steer() error {
	activate := make(map[string]int)
	var withdraw []string
	for _, a := range g.inv.Addresses() {
		want := g.weights(a.Name)
		taken := false // somebody gets this address's new connections
		for _, weight := range want {
			taken = taken || weight > 0
		}
		for _, l := range g.inv.Lanes(a.Name) {
			weight := want[l.Name()]
			beside := false
			if g.beside != nil {
				_, beside = g.beside.lanes[l.Name()]
			}
			switch active := l.State() == upgrade.LaneActive; {
			case weight > 0 && (!active || l.Weight() != weight):
				activate[l.Name()] = weight
			case weight == 0 && active && (beside || taken):
				withdraw = append(withdraw, l.Name())
			}
		}
	}
	var err error
	if len(activate)+len(withdraw) > 0 {
		err = g.inv.Switch(activate, withdraw)
	}
	g.steerPreview(g.beside.ready())
	return err
}

// rebalance keeps the shares of two generations right when a worker of this one has come or gone. The lock is held.
func (g *gate) rebalance() {
	if g.beside == nil {
		return
	}
	if err := g.steer(); err != nil && !errors.Is(err, upgrade.ErrLastLane) {
		g.log.Error("The shares of two generations cannot be kept", zap.Error(err))
	}
}

// beginStage notes the lanes of a generation that is ready beside this one, once for each worker, without a share yet.
func (g *gate) beginStage(lanes []string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.beside = &share{lanes: make(map[string]int)}
	for _, name := range lanes {
		g.beside.lanes[name]++
	}
	return g.steer()
}

// shift gives the staged generation a share. After an error it has the one that it had.
func (g *gate) shift(percent int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.beside == nil {
		return errors.New("no generation is staged")
	}
	before := g.beside.percent
	g.beside.percent = percent
	err := g.steer()
	if err != nil && !errors.Is(err, upgrade.ErrLastLane) {
		g.beside.percent = before
		return errors.Join(fmt.Errorf("give the staged generation %d %%: %w", percent, err), g.steer())
	}
	return nil
}

// seat notes that a worker of the staged generation is ready at lanes, or gone. It returns how many lanes of an address
// are left that have one, at the address that has fewest.
func (g *gate) seat(lanes []string, up bool) (left int, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.beside == nil {
		return 0, nil
	}
	for _, name := range lanes {
		if g.inv.Lane(name) == nil {
			continue
		}
		if up {
			g.beside.lanes[name]++
		} else {
			g.beside.lanes[name] = max(0, g.beside.lanes[name]-1)
		}
	}
	err = g.steer()
	if errors.Is(err, upgrade.ErrLastLane) {
		err = nil // what arrives there is passed on when the lane is free
	}
	left = -1
	for _, a := range g.inv.Addresses() {
		n := 0
		for _, l := range g.inv.Lanes(a.Name) {
			if g.beside.lanes[l.Name()] > 0 {
				n++
			}
		}
		if left < 0 || n < left {
			left = n
		}
	}
	return left, err
}

// endStage takes everything away from the staged generation.
func (g *gate) endStage() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.beside == nil {
		return nil
	}
	g.beside.percent = 0
	err := g.steer()
	g.beside = nil
	g.steerPreview(nil)
	return err
}

// adoptLanes counts the workers of a generation that was staged and now drains here.
func (g *gate) adoptLanes(lanes []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, name := range lanes {
		g.serving[name]++
	}
}

// steerable says why a generation cannot be staged, if it cannot: then its workers would take new connections as soon as
// they start.
func (g *gate) steerable() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return steerable(g.inv)
}

func steerable(inv *upgrade.Inventory) error {
	for _, a := range inv.Addresses() {
		if ok, why := inv.Steerable(a.Name); !ok {
			return fmt.Errorf("%w: new connections at %s cannot be divided between two generations: %s", errNotSteerable, a, why)
		}
	}
	return nil
}

var errNotSteerable = errors.New("cannot be staged")
