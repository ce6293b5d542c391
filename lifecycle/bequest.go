package lifecycle

import (
	"maps"
	"os"
	"slices"
	"strings"

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
