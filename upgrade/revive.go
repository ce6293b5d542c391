package upgrade

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"go.uber.org/zap"
)

// Bequest is what a gapless that was killed as a whole has left with the service manager: a state, which may be a moment old,
// and descriptors of lanes by the lanes' names.
type Bequest struct {
	State InventoryState
	Lanes map[string]*os.File
}

// Revive is Restore for a new start, by a gapless that may be configured otherwise than the one that was killed: it takes over
// the lanes of those claims that are at the same place as before, and closes those of all others. What waits in their queues is
// served by the workers to come: a lane that had a share of new connections keeps it, and is to be given to a worker first.
// Claim does nothing afterwards for what is held, and opens the rest.
//
// An address whose lanes' order in the kernel's group is not known for sure, because one is missing that was not the last, is
// closed with what waits at it, and logged. opts.Activated is looked at and left alone. Revive owns the files of the bequest from
// then on. With an error nothing is held.
func Revive(files Files, b Bequest, claims []Address, mode Mode, opts InventoryOptions) (*Inventory, error) {
	log := opts.Logger
	if log == nil {
		log = zap.NewNop()
	}
	kept := InventoryState{Version: b.State.Version}
	received := make(map[string]*os.File)
	for _, claim := range claims { // in this order, as they would be claimed
		for _, as := range b.State.Addresses {
			if as.Address.Name != claim.Name {
				continue
			}
			records, err := b.usable(as, claim, opts.Activated)
			if err != nil {
				log.Warn("The sockets of the gapless before are not taken over; whoever waits there is turned away",
					zap.String("listener", claim.Name), zap.Error(err))
				continue
			}
			if as.Mode != ModePlain && mode != ModePlain {
				as.Mode = mode
			}
			as.Lanes, as.Preview = records, nil
			for _, r := range records {
				received[r.Name] = b.Lanes[r.Name]
				delete(b.Lanes, r.Name)
				as.Next = max(as.Next, laneNumber(r.Name)+1)
			}
			kept.Addresses = append(kept.Addresses, as)
		}
	}
	for _, f := range b.Lanes {
		_ = f.Close() // nobody claims it
	}
	inv, err := Restore(files, kept, received, opts)
	if err != nil {
		return nil, err
	}
	for _, g := range inv.groups {
		inv.welcome(g)
	}
	return inv, nil
}

// welcome puts the lanes of a revived address in order.
func (inv *Inventory) welcome(g *group) {
	for _, l := range g.lanes {
		if err := prepareInherited(l.file); err != nil { // as its last worker left it, which may have been of another command
			inv.log.Warn("Workers may be held up", zap.String("lane", l.name), zap.Error(err))
		}
		if err := admitAgain(l.file); err != nil { // it may have been killed while it stopped
			inv.log.Warn("Clients may be refused", zap.String("lane", l.name), zap.Error(err))
		}
	}
	if pids := inv.left(boundAddress(g.address, g.lanes[0].file)); len(pids) > 0 {
		inv.log.Warn("What a killed gapless left behind serves beside this one; end it", zap.Stringer("address", g.address), zap.Strings("pids", pids))
	}
	if g.mode == ModePlain {
		return
	}
	if n, err := countListeners(g.lanes[0].file); err == nil && n != len(g.lanes) {
		inv.log.Warn("Other sockets share the address; new connections may go where they have to be passed on", zap.Stringer("address", g.address),
			zap.Int("sockets", n), zap.Int("lanes", len(g.lanes)))
	}
}

// usable returns the lanes of an address in the kernel's order, as they are to be restored.
func (b Bequest) usable(as AddressState, claim Address, activated map[string][]*os.File) ([]LaneRecord, error) {
	if !samePlace(claim, as.Address) {
		return nil, fmt.Errorf("%q was %s and is %s now", claim.Name, as.Address, claim)
	}
	if as.File != 0 && fileInode(as.Address.Addr) != as.File {
		return nil, fmt.Errorf("%s is no more, or another one", as.Address)
	}
	records := slices.Clone(as.Lanes)
	listed := make(map[string]bool)
	for _, r := range records {
		listed[r.Name] = true
	}
	// A lane that the state does not list was opened last, and is the last of the kernel's group.
	var late []LaneRecord
	for name, f := range b.Lanes {
		if address, _, _ := strings.Cut(name, "#"); address != as.Address.Name || listed[name] || laneNumber(name) < 0 {
			continue
		}
		inode, err := socketInode(f)
		if err != nil {
			return nil, fmt.Errorf("lane %s: %w", name, err)
		}
		late = append(late, LaneRecord{Name: name, Inode: inode})
	}
	slices.SortFunc(late, func(a, b LaneRecord) int { return cmp.Compare(laneNumber(a.Name), laneNumber(b.Name)) })
	records = append(records, late...)
	// Those that are missing have been closed. Where all that are left came before them, nothing has moved.
	held := records[:0]
	for i, r := range records {
		switch f := b.Lanes[r.Name]; {
		case f == nil:
		case len(held) < i:
			return nil, fmt.Errorf("lane %s is missing, and a later one is there", records[len(held)].Name)
		default:
			if err := r.check(f); err != nil {
				return nil, err
			}
			if r.State != LaneActive || r.Out {
				r.State, r.Weight, r.Out = LaneFree, 0, false
			}
			r.Weight = min(r.Weight, 1) // shares were those of workers that are dead
			held = append(held, r)
		}
	}
	if len(held) == 0 {
		return nil, errors.New("none of its lanes came along")
	}
	if as.Address.Network == NetworkFD {
		return held, sameSocket(held, activated[as.Address.Addr])
	}
	return held, nil
}

// check tells whether a descriptor is the lane's, and still listens.
func (r LaneRecord) check(f *os.File) error {
	inode, err := socketInode(f)
	if err != nil {
		return fmt.Errorf("lane %s: %w", r.Name, err)
	}
	if inode != r.Inode {
		return fmt.Errorf("the descriptor of %s is socket %d instead of %d", r.Name, inode, r.Inode)
	}
	if !listens(f) {
		return fmt.Errorf("lane %s does not listen any more", r.Name)
	}
	return nil
}

// sameSocket tells whether the socket unit still has the socket that the lanes were made of: one that was restarted has
// another one, which is where clients are.
func sameSocket(lanes []LaneRecord, activated []*os.File) error {
	if len(activated) == 0 {
		return nil
	}
	for _, f := range activated {
		inode, err := socketInode(f)
		if err == nil && slices.ContainsFunc(lanes, func(r LaneRecord) bool { return r.Inode == inode }) {
			return nil
		}
	}
	return errors.New("its socket unit has another socket now")
}

// laneNumber is the number in a lane's name, -1 if there is none.
func laneNumber(name string) int {
	_, number, _ := strings.Cut(name, "#")
	n, err := strconv.Atoi(number)
	if err != nil {
		return -1
	}
	return n
}

// left returns the PIDs of leftovers at an address.
func (inv *Inventory) left(addr Address) (pids []string) {
	if inv.leftovers == nil {
		return nil
	}
	for _, pid := range inv.leftovers(addr.Network, addr.Addr) {
		pids = append(pids, strconv.Itoa(pid))
	}
	return pids
}
