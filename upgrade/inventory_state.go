package upgrade

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"go.uber.org/zap"
)

// inventoryVersion is raised when an older master could misread the state.
const inventoryVersion = 1

// InventoryState is what the next master must know about the lanes beside their descriptors. It is plain JSON.
type InventoryState struct {
	Version   int            `json:"version"`
	Addresses []AddressState `json:"addresses"`
}

// AddressState is one address of an InventoryState.
type AddressState struct {
	Address Address      `json:"address"`
	Mode    Mode         `json:"mode"`
	Reason  string       `json:"reason,omitempty"`
	Next    int          `json:"next"`  // the number that the next lane gets
	Lanes   []LaneRecord `json:"lanes"` // in the kernel's order
	Preview []string     `json:"previews,omitempty"`
	File    uint64       `json:"file,omitempty"` // the inode of the socket file, so that only ours is removed
}

// LaneRecord is one lane of an InventoryState.
type LaneRecord struct {
	Name   string    `json:"name"`
	Inode  uint64    `json:"inode"`
	State  LaneState `json:"state"`
	Weight int       `json:"weight,omitempty"`
	Out    bool      `json:"out,omitempty"` // not in the program although active: the watcher found its worker hung
}

// State is a snapshot of the inventory for Restore.
func (inv *Inventory) State() InventoryState {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	state := InventoryState{Version: inventoryVersion, Addresses: make([]AddressState, 0, len(inv.groups))}
	for _, g := range inv.groups {
		as := AddressState{Address: g.address, Mode: g.mode, Reason: g.reason, Next: g.next, File: g.fileInode}
		for _, l := range g.preview {
			as.Preview = append(as.Preview, l.name)
		}
		for _, l := range g.lanes {
			as.Lanes = append(as.Lanes, LaneRecord{Name: l.name, Inode: l.inode, State: l.state, Weight: l.weight, Out: l.out})
		}
		state.Addresses = append(state.Addresses, as)
	}
	return state
}

// Restore builds the inventory that a State describes. Each lane's descriptor is taken from received, by the lane's
// name ("web#3"), or else from files, under "lane/web#3"; those that were received are added to files. It owns the
// received files from then on, closes those that no lane needs, and closes all of them when it fails.
//
// No other goroutine may close a descriptor of a lane meanwhile (see StopPolling for why lanes are not polled).
//
// The attached program is not touched: it is already that of the state. A descriptor that is missing, or is another
// socket than the state says, is an error, as the kernel's order of lanes would then be unknown.
func Restore(files Files, state InventoryState, received map[string]*os.File, opts InventoryOptions) (*Inventory, error) {
	inv := NewInventory(files, opts)
	left := make(map[string]*os.File, len(received))
	for name, f := range received {
		left[name] = f
	}
	err := inv.restore(state, left)
	for name, f := range left {
		inv.log.Warn("received a lane that the state does not list", zap.String("lane", name))
		_ = f.Close() // a duplicate: its lane lives on wherever else it is held
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("restore the lanes: %w", err), inv.Close())
	}
	if err := inv.stopPollingLanes(); err != nil {
		inv.log.Debug("this process is woken for each connection", zap.Error(err))
	}
	return inv, nil
}

// restore takes the files that it uses out of received.
func (inv *Inventory) restore(state InventoryState, received map[string]*os.File) error {
	if state.Version != inventoryVersion {
		return fmt.Errorf("the state has version %d and this gapless reads %d: restart instead of upgrading", state.Version, inventoryVersion)
	}
	for _, as := range state.Addresses {
		if inv.find(as.Address.Name) != nil || len(as.Lanes) == 0 {
			return fmt.Errorf("address %q is listed twice or without lanes", as.Address.Name)
		}
		g := &group{address: as.Address, mode: as.Mode, reason: as.Reason, next: as.Next, fileInode: as.File}
		inv.groups = append(inv.groups, g)
		for _, record := range as.Lanes {
			l, err := inv.restoreLane(g, record, received)
			if err != nil {
				return err
			}
			g.lanes = append(g.lanes, l)
			if slices.Contains(as.Preview, l.name) {
				g.preview = append(g.preview, l)
			}
		}
	}
	return nil
}

func (inv *Inventory) restoreLane(g *group, record LaneRecord, received map[string]*os.File) (*Lane, error) {
	if record.State == LaneActive && record.Weight < 1 {
		return nil, fmt.Errorf("lane %s is active with weight %d", record.Name, record.Weight)
	}
	file, fresh := received[record.Name]
	if fresh {
		delete(received, record.Name)
	} else {
		var err error
		if file, err = inv.files.File(laneFile(record.Name)); err != nil {
			return nil, fmt.Errorf("descriptor of %s: %w", record.Name, err)
		}
	}
	if file == nil {
		return nil, fmt.Errorf("no descriptor of %s came along", record.Name)
	}
	l := &Lane{
		inventory: inv, group: g, name: record.Name, file: file, inode: record.Inode,
		state: record.State, weight: record.Weight, out: record.Out && record.State == LaneActive,
	}
	if err := inv.adopt(l, fresh); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return l, nil
}

// adopt checks a restored lane's descriptor and puts it in order.
func (inv *Inventory) adopt(l *Lane, fresh bool) error {
	inode, err := socketInode(l.file)
	if err != nil {
		return err
	}
	if inode != l.inode {
		return fmt.Errorf("the descriptor of %s is socket %d instead of %d", l.name, inode, l.inode)
	}
	if err := closeOnExec(l.file); err != nil {
		return fmt.Errorf("descriptor of %s: %w", l.name, err)
	}
	if fresh {
		if err := inv.files.AddFile(laneFile(l.name), l.file); err != nil {
			return fmt.Errorf("keep %s for the next master: %w", l.name, err)
		}
	}
	return nil
}

// Unlink removes the socket files of all unix addresses that are still ours. It is for the final stop alone: whoever
// serves on needs them.
func (inv *Inventory) Unlink() error {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	var errs []error
	for _, g := range inv.groups {
		if g.address.Network == NetworkUnix && !strings.HasPrefix(g.address.Addr, "@") {
			// A file with another inode belongs to somebody who replaced ours.
			if inode := fileInode(g.address.Addr); inode != 0 && inode == g.fileInode {
				errs = append(errs, os.Remove(g.address.Addr))
			}
		}
	}
	return errors.Join(errs...)
}

// Close closes this process's descriptors of all lanes. Other holders of the sockets are not affected.
func (inv *Inventory) Close() error {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	var errs []error
	for _, g := range inv.groups {
		for _, l := range g.lanes {
			errs = append(errs, l.file.Close())
		}
	}
	inv.groups = nil
	return errors.Join(errs...)
}
