package upgrade

import (
	"maps"
	"os"
	"slices"
	"strings"
)

// foreign takes the first unclaimed socket of that name out of the activated ones, nil when there is none.
func (inv *Inventory) foreign(name string) *os.File {
	files := inv.activated[name]
	if len(files) == 0 {
		return nil
	}
	inv.activated[name] = files[1:]
	return files[0]
}

// foreignNames lists what could have been meant.
func (inv *Inventory) foreignNames() string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(inv.activated)) {
		if len(inv.activated[name]) > 0 {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "none was passed (is LISTEN_FDS set, and LISTEN_PID the PID of gapless run?)"
	}
	return "there is " + strings.Join(names, ", ")
}

// Leave closes the activated sockets that no address has claimed, and returns their names: one for each socket, those
// excepted that are lanes already.
func (inv *Inventory) Leave() []string {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	held := make(map[uint64]bool)
	for _, g := range inv.groups {
		for _, l := range g.lanes {
			held[l.inode] = true
		}
	}
	var names []string
	for _, name := range slices.Sorted(maps.Keys(inv.activated)) {
		for _, f := range inv.activated[name] {
			if inode, err := socketInode(f); err != nil || !held[inode] {
				names = append(names, name)
			}
			_ = f.Close() // a duplicate; the socket itself is its owner's
		}
	}
	clear(inv.activated)
	return names
}
