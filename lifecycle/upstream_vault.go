package lifecycle

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"go.uber.org/zap"
)

// Names in the service manager's store. All begin with vaultPrefix, so that they are told from the names of socket units.
const (
	vaultPrefix  = "gapless/"
	vaultLane    = vaultPrefix + lanePrefix // and the lane's name
	vaultLedger  = vaultPrefix + "ledger/"  // and TURN-PAGE
	vaultReserve = 2 * ledgerCount          // descriptors: the ledgers of a master and of the one that follows it
)

// vault is what the service manager above keeps for the case that all of gapless is killed: the lanes, so that nobody who
// waits in a queue is turned away, and the ledger of the master in charge, which says in which order the kernel has them. It is
// part of upstream. What always holds:
//   - Nothing is there before a generation serves, and nothing any more once an order to stop has come.
//   - Of the lanes of an address a part from the first one on is there, without a gap: closing the others leaves the kernel's
//     order of these as it was.
//   - A ledger is there as long as a lane is. It is memory that the master writes to, so it is always the latest.
type vault struct {
	up       *upstream
	capacity int               // descriptors that the manager takes; 0: none
	kept     map[string]uint64 // what it has, also of an earlier run: inodes by name
	begun    bool              // a generation serves
	full     bool
	turn     int // the number of the ledger that is there
}

// newVault takes the value of FDSTORE, which systemd sets from version 254 on where FileDescriptorStoreMax= is not 0.
func newVault(u *upstream, fdstore string) vault {
	v := vault{up: u, kept: make(map[string]uint64)}
	if n, err := strconv.Atoi(fdstore); err == nil && n > 0 && u.address != "" {
		v.capacity = n
	}
	return v
}

// found notes what an earlier run has left.
func (v *vault) found(name string, fd int) {
	if !strings.HasPrefix(name, vaultPrefix) {
		return
	}
	v.kept[name] = inodeOf(fd)
	if turn, _, ok := ledgerTurn(name); ok {
		v.turn = max(v.turn, turn)
	}
}

// ledgerTurn reads the name of a page of a ledger.
func ledgerTurn(name string) (turn, page int, ok bool) {
	rest, ok := strings.CutPrefix(name, vaultLedger)
	if !ok {
		return 0, 0, false
	}
	first, second, _ := strings.Cut(rest, "-")
	turn, err := strconv.Atoi(first)
	page, pageErr := strconv.Atoi(second)
	return turn, page, err == nil && pageErr == nil && turn >= 0
}

// charge follows a master's taking charge: its ledger comes in place of the one before. The first time the lanes come
// before that, and what an earlier run has left goes.
func (v *vault) charge(s *store, pid int) {
	if v.capacity == 0 || v.up.stopping {
		return
	}
	old := maps.Clone(v.kept)
	if !v.begun {
		v.begun = true
		for _, name := range s.laneNames() {
			v.put(name, s.entries[keyOf(lanePrefix+name, 0)].fds)
		}
	}
	if v.full && !v.holdsLanes() {
		return
	}
	v.turn++
	for page := range ledgerCount {
		if e := s.entries[keyOf(ledgerName+strconv.Itoa(page), pid)]; e != nil {
			v.send(vaultLedger+strconv.Itoa(v.turn)+"-"+strconv.Itoa(page), e.fds)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(old)) {
		lane, isLane := strings.CutPrefix(name, vaultPrefix)
		if !isLane || s.entries[keyOf(lane, 0)] == nil || strings.HasPrefix(name, vaultLedger) {
			v.remove(name)
		}
	}
}

func (v *vault) holdsLanes() bool {
	for name := range v.kept {
		if strings.HasPrefix(name, vaultLane) {
			return true
		}
	}
	return false
}

// put keeps a lane.
func (v *vault) put(lane string, fds []int) {
	if v.capacity == 0 || !v.begun || v.up.stopping || v.full || len(fds) != 1 {
		return
	}
	if inode, ok := v.kept[vaultLane+lane]; ok {
		if inode == inodeOf(fds[0]) {
			return
		}
		v.remove(vaultLane + lane) // of an earlier run whose socket this one could not use
	}
	if len(v.kept)+vaultReserve >= v.capacity {
		v.full = true
		v.up.log.Warn("The service manager keeps too few descriptors for all lanes: should gapless be killed as a whole, who waits at the others is lost; raise FileDescriptorStoreMax=",
			zap.Int("max", v.capacity), zap.String("lane", lane))
		return
	}
	v.send(vaultLane+lane, fds)
}

// drop follows a lane that is no more.
func (v *vault) drop(lane string) {
	if _, ok := v.kept[vaultLane+lane]; ok {
		v.remove(vaultLane + lane)
	}
}

// forget removes what the first master cannot use of what an earlier run has left.
func (v *vault) forget(name string) {
	if _, ok := v.kept[name]; ok && !v.begun {
		v.remove(name)
	}
}

// empty leaves nothing with the manager.
func (v *vault) empty() {
	for _, name := range slices.Sorted(maps.Keys(v.kept)) {
		v.remove(name)
	}
}

func (v *vault) send(name string, fds []int) {
	v.kept[name] = inodeOf(fds[0])
	// Without FDPOLL=0 systemd would forget a socket as soon as its last worker has shut it down.
	v.up.tell("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, fds...)
}

func (v *vault) remove(name string) {
	delete(v.kept, name)
	v.up.tell("FDSTOREREMOVE=1\nFDNAME=" + name)
}

// inodeOf returns the inode of a descriptor, 0 if it has none.
func inodeOf(fd int) uint64 {
	var st syscall.Stat_t
	if syscall.Fstat(fd, &st) != nil {
		return 0
	}
	return st.Ino
}

// laneNames returns the names of the lanes in the store, each address's in the order in which they were opened.
func (s *store) laneNames() (names []string) {
	for key := range s.entries {
		if lane, ok := strings.CutPrefix(key.name, lanePrefix); ok {
			names = append(names, lane)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		addressA, numberA, _ := strings.Cut(a, "#")
		addressB, numberB, _ := strings.Cut(b, "#")
		na, _ := strconv.Atoi(numberA)
		nb, _ := strconv.Atoi(numberB)
		return cmp.Or(strings.Compare(addressA, addressB), cmp.Compare(na, nb))
	})
	return names
}
