package lifecycle

import (
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"gapless/internal/packet"
	"gapless/upgrade"

	"go.uber.org/zap"
)

// takeBequest is the first master's: it sorts what came from the service manager into sockets of socket units, by name, and
// what a gapless that was killed has left with it, and takes over the lanes of that, if there are any (else inv is nil).
func (m *master) takeBequest(opts upgrade.InventoryOptions) (activated map[string][]*os.File, inv *upgrade.Inventory, err error) {
	all, err := openEstate(activatedVariable)
	if err != nil {
		return nil, nil, err
	}
	activated = make(map[string][]*os.File)
	lanes := make(map[string]*os.File)
	ledgers := make(map[int][]*os.File)
	for name, files := range all {
		lane, isLane := strings.CutPrefix(name, vaultLane)
		turn, _, isLedger := ledgerTurn(name)
		switch {
		case isLane && lanes[lane] == nil:
			lanes[lane] = files[0]
			packet.CloseAll(files[1:])
		case isLedger:
			ledgers[turn] = append(ledgers[turn], files...)
		case strings.HasPrefix(name, vaultPrefix):
			packet.CloseAll(files) // of another version
		default:
			activated[name] = files
		}
	}
	if len(lanes) == 0 && len(ledgers) == 0 {
		return activated, nil, nil
	}
	names := slices.Sorted(maps.Keys(lanes))
	defer func() { m.dropBequest(names, inv) }()
	opts.Activated = activated
	state, ok := m.latestState(ledgers)
	if !ok {
		packet.CloseAll(slices.Collect(maps.Values(lanes)))
		m.log.Warn("What the gapless before has left with the service manager cannot be read; whoever waits there is turned away", zap.Int("lanes", len(lanes)))
		return activated, nil, nil
	}
	inv, err = upgrade.Revive(m.files, upgrade.Bequest{State: state, Lanes: lanes}, m.cfg.Addresses, m.cfg.Accept, opts)
	if err != nil {
		m.log.Error("The sockets of the gapless before cannot be taken over; whoever waits there is turned away", zap.Error(err))
		return activated, nil, nil
	}
	if held := inv.Addresses(); len(held) > 0 {
		m.log.Warn("Took the sockets over from a gapless that was killed; whoever waits there is served", zap.Stringers("addresses", held))
	}
	return activated, inv, nil
}

// dropBequest has the service manager forget the lanes that are not taken over, or nobody could open a socket there.
func (m *master) dropBequest(names []string, inv *upgrade.Inventory) {
	for _, name := range names {
		if inv == nil || inv.Lane(name) == nil {
			m.keep.remove(vaultLane + name)
			m.patient = true
		}
	}
}

// claimFreed is how long the service manager may take to close what it was told to forget.
const (
	claimFreed = 5 * time.Second
	claimAgain = 20 * time.Millisecond
)

// claimOne opens an address. Where a lane of a killed gapless was given up, the service manager may hold it for a moment more.
func (m *master) claimOne(a upgrade.Address) error {
	for deadline := time.Now().Add(claimFreed); ; {
		err := m.inv.Claim(a, m.cfg.Accept)
		if !m.patient || !errors.Is(err, upgrade.ErrAddressInUse) || time.Now().After(deadline) {
			return err
		}
		<-time.After(claimAgain)
	}
}

// latestState reads the latest ledger that can be read. It closes the files.
func (m *master) latestState(ledgers map[int][]*os.File) (state upgrade.InventoryState, ok bool) {
	for _, turn := range slices.Backward(slices.Sorted(maps.Keys(ledgers))) {
		if !ok {
			l, err := readLedger(ledgers[turn])
			if err == nil {
				state, ok = l.Inventory, true
			} else {
				m.log.Debug("ledger not read", zap.Int("turn", turn), zap.Error(err))
			}
		}
		packet.CloseAll(ledgers[turn])
	}
	return state, ok
}
