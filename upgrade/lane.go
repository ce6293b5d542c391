package upgrade

import (
	"fmt"
	"os"
	"slices"
)

// LaneState is where a lane stands in its life. The zero value is LaneFree.
//
//	          Take             Switch(activate)          Switch(withdraw)
//	free ─────────────▶ starting ─────────────▶ active ─────────────▶ draining
//	 ▲                    │  ▲                     ▲                   │ │ │
//	 └────── Release ─────┘  └──────── Reuse ──────┼───────────────────┘ │ │
//	 ▲                                             └── Switch(activate) ─┘ │
//	 └──────────────────────────── Release ────────────────────────────────┘
type LaneState int

// The states of a lane.
const (
	LaneFree     LaneState = iota // no worker accepts from it: what still arrives is for a relay
	LaneStarting                  // given to a worker that is not ready yet; not in the program
	LaneActive                    // in the program, with a weight
	LaneDraining                  // out of the program; its worker still accepts what was under way
	laneStateCount
)

var laneStateNames = [laneStateCount]string{"free", "starting", "active", "draining"}

// laneMoves is the one table of what may follow what. A lane of a dead worker goes from draining back to starting when
// the replacement inherits it; one whose withdrawal is taken back goes from draining to active.
var laneMoves = [laneStateCount][]LaneState{
	LaneFree:     {LaneStarting},
	LaneStarting: {LaneActive, LaneFree},
	LaneActive:   {LaneDraining},
	LaneDraining: {LaneFree, LaneActive, LaneStarting},
}

// String returns the state's name, as status and the log print it.
func (s LaneState) String() string {
	if s < 0 || s >= laneStateCount {
		return fmt.Sprintf("LaneState(%d)", int(s))
	}
	return laneStateNames[s]
}

// MarshalText writes the state's name.
func (s LaneState) MarshalText() ([]byte, error) {
	if s < 0 || s >= laneStateCount {
		return nil, fmt.Errorf("lane state %d has no name", int(s))
	}
	return []byte(laneStateNames[s]), nil
}

// UnmarshalText reads the state's name.
func (s *LaneState) UnmarshalText(text []byte) error {
	i := slices.Index(laneStateNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("unknown lane state %q", text)
	}
	*s = LaneState(i)
	return nil
}

// LaneMoveError says that a lane was asked to do what its state does not allow.
type LaneMoveError struct {
	Lane     string
	From, To LaneState
}

func (e *LaneMoveError) Error() string {
	return fmt.Sprintf("lane %s is %s and cannot become %s", e.Lane, e.From, e.To)
}

// Lane is one listening socket of an address. It is opened once and stays open until the last manager process exits:
// closing one would reset what is queued on it and move the kernel's indexes of its siblings.
//
// Name, Address, File and Inode never change. State, Index and Weight are readings under the inventory's lock.
type Lane struct {
	inventory *Inventory
	group     *group
	name      string
	file      *os.File
	inode     uint64

	// Guarded by inventory.mu.
	state  LaneState
	weight int  // at least 1 while active
	out    bool // the watcher took it out of the program although it is active
}

// Name is the lane's name, "web#3": the address's name and a number that is never reused within the address. The number
// is the lane's index in the kernel's group when it is opened, and stays when the index changes.
func (l *Lane) Name() string { return l.name }

// Address is the address that the lane belongs to, with its port resolved.
func (l *Lane) Address() Address { return l.group.address }

// Bound is where the lane's socket is bound: a TCP or unix address even if Address is of NetworkFD, to be dialled.
func (l *Lane) Bound() Address { return boundAddress(l.group.address, l.file) }

// File is the listening socket. It belongs to the inventory: do not close it, and take descriptors for others from
// SyscallConn, as Fd may put the socket into blocking mode for every process that holds it.
func (l *Lane) File() *os.File { return l.file }

// Inode is the socket's inode, the same in every process that inherits the lane.
func (l *Lane) Inode() uint64 { return l.inode }

// Index is the lane's place in the kernel's SO_REUSEPORT group, 0 for a plain lane.
func (l *Lane) Index() int {
	l.inventory.mu.Lock()
	defer l.inventory.mu.Unlock()
	return l.group.index(l)
}

// State is the lane's state.
func (l *Lane) State() LaneState {
	l.inventory.mu.Lock()
	defer l.inventory.mu.Unlock()
	return l.state
}

// Weight is the lane's share of new connections in relation to the other active lanes of its address, 0 unless active.
func (l *Lane) Weight() int {
	l.inventory.mu.Lock()
	defer l.inventory.mu.Unlock()
	return l.weight
}

// checkMove says whether the lane may go to next. A move to the state that it has is none.
func (l *Lane) checkMove(next LaneState) error {
	if l.state == next || slices.Contains(laneMoves[l.state], next) {
		return nil
	}
	return &LaneMoveError{Lane: l.name, From: l.state, To: next}
}

// move is the only writer of state and weight. The inventory's lock is held.
func (l *Lane) move(next LaneState, weight int) error {
	if err := l.checkMove(next); err != nil {
		return err
	}
	from := l.state
	l.state, l.weight = next, 0
	if next == LaneActive {
		l.weight = weight
	}
	if next != LaneActive {
		l.out = false
	}
	if from != next {
		l.inventory.stir()
		l.inventory.observe(l, from, next)
	}
	return nil
}
