package workerpool

import (
	"fmt"
	"os"
	"time"
)

// ID names a worker in logs and errors.
type ID struct {
	Slot       int `json:"slot"`
	Generation int `json:"generation"`
	PID        int `json:"pid"`
}

func (id ID) String() string { return fmt.Sprintf("%d (pid %d)", id.Slot, id.PID) }

// Info is what the Gate and status know of a worker.
type Info struct {
	ID
	Lanes    []string  `json:"lanes"`
	Inodes   []uint64  `json:"inodes"` // of the lanes' sockets
	State    State     `json:"state"`
	Since    time.Time `json:"since"`
	Started  time.Time `json:"started"`
	Reason   string    `json:"reason,omitempty"` // why it is in its state
	Revision int       `json:"revision,omitempty"`
	Role     string    `json:"role,omitempty"`   // "" for a worker, else what kind of helper it is
	Told     bool      `json:"told"`             // it has got its order to drain
	ToldAt   time.Time `json:"told_at,omitzero"` // when
	Handoff  bool      `json:"handoff"`          // it takes handed-over connections

	Adapter   string `json:"adapter,omitempty"`    // what the adapter in it has found; "": none is in force
	NoAdapter string `json:"no_adapter,omitempty"` // why none is

	InFlight    int `json:"in_flight"` // what a draining worker last said
	Connections int `json:"connections"`
	Handed      int `json:"handed"`
	// Oldest is when the oldest of those requests began; zero: there is none, or the worker cannot tell.
	Oldest  time.Time `json:"oldest,omitzero"`
	Reports bool      `json:"reports,omitempty"` // it has said any of this

	Says string `json:"says,omitempty"` // its last STATUS=

	Beat time.Time `json:"beat,omitzero"` // when it last said WATCHDOG=1
}

// Order is the order to drain.
type Order struct {
	Reason  string
	Stop    bool          // nobody takes over: everything ends
	Timeout time.Duration // from the stop signal to KILL; 0: no limit
	Extra   time.Duration // granted to a worker that knows the channel while bytes still move
	Spread  time.Duration // over which it spreads the close frames of its WebSockets
	// Queue returns the sending end of the queue that takes the idle connections of a worker that knows the channel,
	// or nil. It is called when the worker is told, and the file stays the callee's.
	Queue func() *os.File
}
