package upgrade

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/net/bpf"
)

// Errors that callers of the inventory act on.
var (
	// ErrNotSupported says that this operating system cannot do it.
	ErrNotSupported = errors.New("not supported on this operating system")
	// ErrAddressInUse says that another process listens at an address.
	ErrAddressInUse = errors.New("address already in use")
	// ErrLastLane says that a lane was kept in the program because no other lane of its address is active.
	ErrLastLane = errors.New("the last active lane of its address stays")
	// ErrUnknown says that there is no address or lane of that name.
	ErrUnknown = errors.New("no such address or lane")
)

// Files is where descriptors are kept so that the next master finds them by name. tableflip's Fds is one. File returns
// a duplicate that the caller owns, or nil and no error when there is none of that name; AddFile keeps a duplicate of its own.
type Files interface {
	File(name string) (*os.File, error)
	AddFile(name string, f *os.File) error
}

// InventoryOptions are the optional parts of an Inventory. The zero value works.
type InventoryOptions struct {
	// Logger takes one debug line per move of a lane, and warnings. Default: none.
	Logger *zap.Logger
	// Changed is told of everything that makes State return something else. It must not block, nor call the inventory.
	// Default: nobody is told.
	Changed func()
	// Owner names who listens at an address ("pid 812 (nginx)"), or returns "" when nothing tells. Default: never tells.
	Owner func(network, addr string) string
	// Leftovers returns the processes that listen at an address and that nobody looks after any more: those of an earlier run
	// that was killed. Default: there are none.
	Leftovers func(network, addr string) []int
	// Activated holds the sockets that addresses of NetworkFD may claim, by name, in the order in which they were passed.
	// Claim takes the first of a name and owns it from then on; Leave closes those that are left. Default: none.
	Activated map[string][]*os.File
}

// Inventory holds the listening sockets of all addresses as lanes, and decides alone which of them the kernel gives
// new connections to.
//
// What always holds:
//   - The lanes of a steered or shared address are one SO_REUSEPORT group with one program, attached since the first
//     of them listens. The order of the group's lanes here is the kernel's order.
//   - The program names exactly the active lanes that the watcher has not taken out, by weight; it is never empty.
//   - Lanes are added and never closed while the process lives. Each is in Files before anybody gets it.
//   - One lock guards all of it, and one function, apply, computes and attaches a program.
//
// Only the master in charge may call what changes lanes or programs.
type Inventory struct {
	files     Files
	log       *zap.Logger
	leftovers func(network, addr string) []int
	changed   func()
	owner     func(network, addr string) string
	activated map[string][]*os.File
	attach    func(*os.File, []bpf.RawInstruction) error // replaced in tests that follow what the kernel is given

	stirred chan struct{} // the watcher must look again; buffered

	mu     sync.Mutex
	groups []*group // in the order of their claims
}

// group is one address with its lanes. Guarded by Inventory.mu but for address, mode and reason, which never change.
type group struct {
	address Address // port resolved
	mode    Mode
	reason  string // why mode is ModePlain when something else was asked for
	lanes   []*Lane
	next    int     // the number of the next lane
	preview []*Lane // where preview connections go; none: to the active lanes
	knock   *Lane   // where those go that ask whether a worker is ready; nil: to the active lanes

	fileInode uint64 // of the socket file of a unix address, 0 for all others; never changes
}

// NewInventory returns an empty inventory that keeps its descriptors in files.
func NewInventory(files Files, opts InventoryOptions) *Inventory {
	inv := &Inventory{files: files, log: opts.Logger, owner: opts.Owner, changed: opts.Changed, leftovers: opts.Leftovers, activated: opts.Activated, attach: attach, stirred: make(chan struct{}, 1)}
	if inv.log == nil {
		inv.log = zap.NewNop()
	}
	if inv.owner == nil {
		inv.owner = func(string, string) string { return "" }
	}
	return inv
}

// Claim opens the first lane of an address, in state free, in a way that no other process can share it. A port 0 is
// resolved. Where the mode that is asked for is impossible, the address is claimed as ModePlain and Steerable says why.
//
// Claiming what a restored inventory already holds under that name does nothing.
func (inv *Inventory) Claim(addr Address, mode Mode) error {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	if addr.Name == "" {
		return fmt.Errorf("%w: %s has no name: pass it through NameAddresses", ErrBadAddress, addr)
	}
	if held := inv.find(addr.Name); held != nil {
		if !samePlace(addr, held.address) {
			return fmt.Errorf("%w: %q is %s and cannot become %s while gapless runs: restart it", ErrBadAddress, addr.Name, held.address, addr)
		}
		return nil
	}
	g := &group{address: addr, mode: mode}
	opened, err := inv.open(g)
	if err != nil {
		return err
	}
	for i, file := range opened {
		if err := inv.add(g, file); err != nil {
			closeAll(opened[i+1:])
			for _, l := range g.lanes {
				err = errors.Join(err, l.file.Close())
			}
			return err
		}
	}
	inv.groups = append(inv.groups, g)
	if addr.Network == NetworkFD {
		if err := inv.stopPollingLanes(); err != nil {
			inv.log.Debug("this process is woken for each connection", zap.Error(err))
		}
	}
	inv.log.Debug("address claimed", zap.String("listener", g.address.Name), zap.Stringer("address", g.address),
		zap.Stringer("accept", g.mode), zap.String("reason", g.reason))
	return nil
}

// Take gives free lanes to workers that are about to start: they become starting. Free lanes are reused before new ones
// are opened. Steered, it returns n lanes; shared, one lane for the n workers of a generation; plain, the one lane that
// there is, whoever else has it. On an error no lane has changed its state.
func (inv *Inventory) Take(address string, n int) ([]*Lane, error) {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	g := inv.find(address)
	if g == nil {
		return nil, fmt.Errorf("take lanes of %q: %w", address, ErrUnknown)
	}
	if n < 1 {
		return nil, fmt.Errorf("take %d lanes of %q: at least one is needed", n, address)
	}
	if g.mode == ModePlain {
		if l := g.lanes[0]; l.state != LaneFree {
			return []*Lane{l}, nil
		}
	}
	if g.mode != ModeSteered {
		n = 1
	}
	var taken []*Lane
	for _, l := range g.lanes {
		if len(taken) < n && l.state == LaneFree && !g.marked(l) {
			taken = append(taken, l)
			// Its last worker may have cleared O_NONBLOCK, which stays as it is from now on: workers may share the lane.
			if err := prepareInherited(l.file); err != nil {
				return nil, fmt.Errorf("reuse %s: %w", l.name, err)
			}
			// Its last worker may have changed the backlog. One that was shut down is left to the watcher.
			if r, err := read(l.file); err == nil && r.state == tcpListening {
				if err := listenAgain(l.file); err != nil {
					return nil, fmt.Errorf("reuse %s: %w", l.name, err)
				}
			}
		}
	}
	for len(taken) < n {
		file, err := openSibling(g.address, g.lanes[0].file)
		if err != nil {
			return nil, fmt.Errorf("open lane %d of %s: %w", g.next, g.address.Name, err)
		}
		if err := inv.add(g, file); err != nil {
			return nil, err
		}
		taken = append(taken, g.lanes[len(g.lanes)-1])
	}
	for _, l := range taken {
		if err := l.move(LaneStarting, 0); err != nil {
			return nil, err
		}
	}
	return taken, nil
}

// Reuse gives a draining lane whose worker is dead to the replacement: it becomes starting again, with what is queued
// on it. A lane that is already starting, and one that was kept active as the last, stay as they are.
func (inv *Inventory) Reuse(lane string) error {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	l, err := inv.lane(lane)
	if err != nil {
		return err
	}
	if l.state == LaneActive || l.group.mode == ModePlain {
		return nil
	}
	return l.move(LaneStarting, 0)
}

// Release says that no worker accepts from a lane any more (or ever did): it becomes free. What still arrives there is
// the watcher's to report. Releasing a plain lane does nothing.
func (inv *Inventory) Release(lane string) error {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	l, err := inv.lane(lane)
	if err != nil {
		return err
	}
	if l.group.mode == ModePlain {
		return nil
	}
	if err := l.move(LaneFree, 0); err != nil {
		return err
	}
	inv.released(l)
	return nil
}

// Lane returns the lane of that name, or nil.
func (inv *Inventory) Lane(name string) *Lane {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	l, _ := inv.lane(name)
	return l
}

// Lanes returns the lanes of an address in the kernel's order, nil for an unknown address.
func (inv *Inventory) Lanes(address string) []*Lane {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	g := inv.find(address)
	if g == nil {
		return nil
	}
	return slices.Clone(g.lanes)
}

// Addresses returns the claimed addresses in the order of their claims, with ports resolved.
func (inv *Inventory) Addresses() []Address {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	addrs := make([]Address, len(inv.groups))
	for i, g := range inv.groups {
		addrs[i] = g.address
	}
	return addrs
}

// Bound returns the place that an address's socket is bound to: a TCP or unix address even for one of NetworkFD, as a
// banner prints it and a client dials it (a wildcard by a loopback address). ok is false for an unknown address.
func (inv *Inventory) Bound(address string) (addr Address, ok bool) {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	g := inv.find(address)
	if g == nil {
		return Address{}, false
	}
	return boundAddress(g.address, g.lanes[0].file), true
}

// Mode returns the mode in force for an address, ModePlain for an unknown one.
func (inv *Inventory) Mode(address string) Mode {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	if g := inv.find(address); g != nil {
		return g.mode
	}
	return ModePlain
}

// Steerable says whether new connections of an address can be steered, and if not, why, in words for the user.
func (inv *Inventory) Steerable(address string) (ok bool, reason string) {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	g := inv.find(address)
	switch {
	case g == nil:
		return false, fmt.Sprintf("%q is not an address that gapless listens at", address)
	case g.mode == ModePlain && g.reason == "":
		return false, "plain was asked for"
	}
	return g.mode != ModePlain, g.reason
}

// find returns the group of an address, or nil. The lock is held.
func (inv *Inventory) find(address string) *group {
	for _, g := range inv.groups {
		if g.address.Name == address {
			return g
		}
	}
	return nil
}

// lane returns the lane of that name. The lock is held.
func (inv *Inventory) lane(name string) (*Lane, error) {
	address, _, _ := strings.Cut(name, "#")
	if g := inv.find(address); g != nil {
		for _, l := range g.lanes {
			if l.name == name {
				return l, nil
			}
		}
	}
	return nil, fmt.Errorf("lane %q: %w", name, ErrUnknown)
}

// add makes a lane of a socket that has just joined the kernel's group as its last member, and keeps it in Files. It owns
// the file from then on, also when it fails. The lock is held.
func (inv *Inventory) add(g *group, file *os.File) error {
	inode, err := socketInode(file)
	if err != nil {
		return errors.Join(err, file.Close())
	}
	l := &Lane{inventory: inv, group: g, name: laneName(g.address.Name, g.next), file: file, inode: inode}
	// The lane is in the kernel's group whether or not it can be kept, so it must be counted in either case: closing it
	// is safe only while nobody else has a descriptor of it and it is the last of its group, which it is.
	if err := inv.files.AddFile(laneFile(l.name), file); err != nil {
		return errors.Join(fmt.Errorf("keep %s for the next master: %w", l.name, err), file.Close())
	}
	// Not sooner: all files of it that were made so far stay out of the runtime's poller.
	if err := prepareInherited(file); err != nil {
		return errors.Join(fmt.Errorf("lane %s: %w", l.name, err), file.Close())
	}
	g.lanes = append(g.lanes, l)
	g.next++
	inv.stir()
	inv.tell()
	return nil
}

// tell says that State returns something else now.
func (inv *Inventory) tell() {
	if inv.changed != nil {
		inv.changed()
	}
}

func (inv *Inventory) observe(l *Lane, from, to LaneState) {
	inv.tell()
	inv.log.Debug("lane moved", zap.String("lane", l.name), zap.Stringer("from", from), zap.Stringer("state", to),
		zap.Int("weight", l.weight))
}

func (g *group) index(l *Lane) int { return slices.Index(g.lanes, l) }

func laneName(address string, number int) string { return address + "#" + strconv.Itoa(number) }

// laneFile is the name of a lane's descriptor in Files.
func laneFile(lane string) string { return "lane/" + lane }

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // the error that led here is the one to report
	}
}
