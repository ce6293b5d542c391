package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"
)

// What a Controller's errors match. A Client returns errors that match them again.
var (
	// ErrBusy says that another operation is under way and that this one was not begun.
	ErrBusy = errors.New("another operation is under way")
	// ErrNotRunning says that no gapless answers at the socket.
	ErrNotRunning = errors.New("not running")
	// ErrEnded says that the parent ended before it told an operation's outcome.
	ErrEnded = errors.New("gapless ended before it told the outcome")
	// ErrNoMaster says that no master is in charge just now: the parent is starting one.
	ErrNoMaster = errors.New("no master is in charge")
)

// Controller is what the API commands. All methods may be called at any time and from many goroutines.
//
// ctx ends only when the parent itself ends, never because a client went away. An outcome that is known (aborted, for
// example) is a Result with OK false and a Reason, and no error; an error says that the operation was not begun, or that
// its outcome is unknown. progress may be nil, is called in order from one goroutine at a time, and never blocks.
type Controller interface {
	// Status returns what runs. It works, with StateNoMaster, while there is no master.
	Status(ctx context.Context) (Status, error)
	// Upgrade returns at the commit, or with WaitDrained when the last process of the old generation is gone.
	Upgrade(ctx context.Context, req UpgradeRequest, progress func(Event)) (Result, error)
	// Reload returns when every worker has been replaced.
	Reload(ctx context.Context, req ReloadRequest, progress func(Event)) (Result, error)
	// Scale returns when all added workers are ready, or all surplus ones are gone.
	Scale(ctx context.Context, req ScaleRequest, progress func(Event)) (Result, error)
	// Stop returns when every worker is gone; the parent exits soon after the answer has been sent.
	Stop(ctx context.Context, req StopRequest, progress func(Event)) (Result, error)
	// Shift returns when a staged generation gets its new share, and has been verified with it.
	Shift(ctx context.Context, req ShiftRequest, progress func(Event)) (Result, error)
	// Promote returns at the commit, or when the window has begun.
	Promote(ctx context.Context, req PromoteRequest, progress func(Event)) (Result, error)
	// Abort returns when the staged generation has no share any more and only drains.
	Abort(ctx context.Context, req AbortRequest, progress func(Event)) (Result, error)
	// Rollback is Abort, for a generation in its window.
	Rollback(ctx context.Context, req RollbackRequest, progress func(Event)) (Result, error)
	// Subscribe calls handle for what happens from now on, in order, until ctx ends (nil) or there is nothing to
	// subscribe to. Its ctx ends when the client goes away.
	Subscribe(ctx context.Context, handle func(Event)) error
}

// The states of Status.
const (
	StateStarting  = "starting"  // the first generation is not ready yet
	StateServing   = "serving"   //
	StateUpgrading = "upgrading" // serving, while a new generation starts
	StateStaged    = "staged"    // serving, with a generation beside it that is staged or in its window: Staged tells
	StateReloading = "reloading" // serving, while workers are replaced
	StateDegraded  = "degraded"  // serving with less than was asked for; DegradedReason says why
	StateStopping  = "stopping"  // draining everything
	StateNoMaster  = "no_master" // the workers serve; the parent is starting a master to take charge of them
)

// The states of a Generation.
const (
	GenerationStarting = "starting" // not all of its workers are ready
	GenerationStaged   = "staged"   // ready, and not in charge
	GenerationWindow   = "window"   // it has all new connections, and takes charge when its window ends
	GenerationServing  = "serving"  // in charge
	GenerationKept     = "kept"     // in charge and whole, without new connections: another one is in its window
	GenerationAborted  = "aborted"  // it will not take charge, and is being ended
	GenerationDraining = "draining" // finishing what it has
)

// How an Address gives new connections to workers.
const (
	AcceptSteered = "steered" // each worker has a lane of its own
	AcceptShared  = "shared"  // a generation has one lane
	AcceptPlain   = "plain"   // one socket for all generations: the kernel does not steer it
)

// Status is the answer to GET /v1/status: what runs now. Lists are empty rather than null.
type Status struct {
	Version        string       `json:"version"` // of the parent's gapless; the API's own version is in the path
	ParentPID      int          `json:"parent_pid"`
	State          string       `json:"state"`                     // one of the State constants
	Detail         string       `json:"detail"`                    // the same in one line for people, as systemd shows it
	DegradedReason string       `json:"degraded_reason,omitempty"` // with StateDegraded
	Addresses      []Address    `json:"addresses"`
	Workers        int          `json:"workers"`     // as many as are wanted
	Generations    []Generation `json:"generations"` // newest first
	MemoryBytes    int64        `json:"memory_bytes"`
	MemoryLimit    int64        `json:"memory_limit_bytes,omitempty"` // the cgroup's memory.max; 0: none
	Warnings       []string     `json:"warnings"`
	Staged         *Staged      `json:"staged,omitempty"`  // with StateStaged
	Preview        *Preview     `json:"preview,omitempty"` // with --preview of run, or of what is staged
	LastUpgrade    *LastUpgrade `json:"last_upgrade,omitempty"`
}

// Staged is a generation that is ready and not in charge.
type Staged struct {
	Generation int       `json:"generation"`
	State      string    `json:"state"`           // GenerationStaged or GenerationWindow
	Percent    int       `json:"percent"`         // of new connections that it gets
	Steps      []int     `json:"steps,omitempty"` // the shares that it will get by itself
	Until      time.Time `json:"until,omitzero"`  // when what is under way ends: a bake, or the window
	Next       string    `json:"next"`            // what happens next, for people
}

// Preview is the address whose connections reach the staged generation, or the one in charge while none is staged.
type Preview struct {
	URL        string `json:"url"`
	Address    string `json:"address"`    // Name of the Address that is previewed
	Generation int    `json:"generation"` // that answers there now
	// ForStage says that it is open for what is staged now alone, and closes with that.
	ForStage bool `json:"for_stage,omitempty"`
}

// Headline is the status in one line for people: the first one of `gapless status`, and what systemd shows.
func (st Status) Headline() string {
	return fmt.Sprintf("gapless %s, pid %d: %s", st.Version, st.ParentPID, cmp.Or(st.Detail, st.State))
}

// Address is one place that gapless listens at.
type Address struct {
	Name   string `json:"name"` // as in LISTEN_FDNAMES
	URL    string `json:"url"`
	Accept string `json:"accept"`           // one of the Accept constants
	Reason string `json:"reason,omitempty"` // why it is plain
}

// Generation is a master and the workers that it started, for as long as one of them lives.
type Generation struct {
	Generation int      `json:"generation"`
	Revision   int      `json:"revision"`
	State      string   `json:"state"`      // one of the Generation constants
	MasterPID  int      `json:"master_pid"` // 0: gone, its workers drain under its successor
	AgeSeconds float64  `json:"age_seconds"`
	ReleaseDir string   `json:"release_dir"`       // where its workers run, with symbolic links resolved
	Command    []string `json:"command"`           // empty: the built-in app
	Binary     string   `json:"binary"`            // the master's executable
	Version    string   `json:"version,omitempty"` // of the master's gapless
	Workers    []Worker `json:"workers"`
	WhyAlive   string   `json:"why_alive,omitempty"` // of one that drains: what it still waits for
}

// Worker is one worker process.
type Worker struct {
	Slot        int       `json:"slot"` // GAPLESS_WORKER
	PID         int       `json:"pid"`
	Generation  int       `json:"generation"`
	Revision    int       `json:"revision"`
	Role        string    `json:"role,omitempty"` // "" for COMMAND, else what it is (relay)
	State       string    `json:"state"`          // starting, ready, draining, killing, exited
	Since       time.Time `json:"since"`          // of State
	Started     time.Time `json:"started"`
	Reason      string    `json:"reason,omitempty"` // why it is in this state
	AgeSeconds  float64   `json:"age_seconds"`
	Restarts    int       `json:"restarts"`                   // of its slot
	MemoryPSS   int64     `json:"memory_pss_bytes,omitempty"` // 0: not readable
	MemoryRSS   int64     `json:"memory_rss_bytes,omitempty"` // 0: not readable
	Established int       `json:"connections_established"`    // accepted and open, as the kernel says
	Queued      int       `json:"connections_queued"`         // not accepted yet
	InFlight    *int      `json:"in_flight,omitempty"`        // requests, if the worker says
	Handed      *int      `json:"handed,omitempty"`           // connections given to its successors, if the worker says
	Oldest      *float64  `json:"oldest_request_seconds,omitempty"`
	Says        string    `json:"says,omitempty"` // its last STATUS=
	Lanes       []Lane    `json:"lanes,omitempty"`
	Adapter     string    `json:"adapter,omitempty"`    // what the adapter in it serves it with; "": none is in force
	NoAdapter   string    `json:"no_adapter,omitempty"` // why none is, where one could be expected
}

// Lane is a listening socket that a worker accepts from, and its share of new connections.
type Lane struct {
	Address string `json:"address"` // Name of the Address
	Index   int    `json:"index"`   // in the group of sockets of that address
	Weight  int    `json:"weight"`  // 0: it gets no new connections
}

// LastUpgrade is the outcome of the latest upgrade.
type LastUpgrade struct {
	Generation  int       `json:"generation"` // the new one
	OK          bool      `json:"ok"`
	Reason      string    `json:"reason,omitempty"` // why it was aborted
	Tail        []string  `json:"tail,omitempty"`   // the last lines of the worker that failed
	TookSeconds float64   `json:"took_seconds"`
	At          time.Time `json:"at"`
}

// The kinds of an Event.
const (
	KindWorker       = "worker"        // a worker went From one State to another
	KindMaster       = "master"        // a master did
	KindUpgrade      = "upgrade"       // State is a phase: steps, starting, ready, staged, verify, shift, window, commit, drain, done, aborted
	KindReload       = "reload"        // likewise
	KindScale        = "scale"         // likewise
	KindStop         = "stop"          // likewise
	KindAfterPromote = "after-promote" // State: starting, done, failed; of Generation
	KindLane         = "lane"          // a lane got another weight
	KindLog          = "log"           // Text, for people
)

// Event is something that happened. Fields that say nothing of it are absent.
type Event struct {
	Time        time.Time `json:"time"`
	Kind        string    `json:"kind"` // one of the Kind constants
	Generation  int       `json:"generation,omitempty"`
	Worker      *int      `json:"worker,omitempty"` // the slot
	PID         int       `json:"pid,omitempty"`
	From        string    `json:"from,omitempty"`
	State       string    `json:"state,omitempty"`
	Reason      string    `json:"reason,omitempty"`
	TookSeconds float64   `json:"took_seconds,omitempty"`
	Text        string    `json:"text,omitempty"`
	Ready       int       `json:"ready,omitempty"` // how many, of Total: workers ready, or gone
	Total       int       `json:"total,omitempty"`
	Oldest      *float64  `json:"oldest_request_seconds,omitempty"`
	LastLines   []string  `json:"last_lines,omitempty"` // of a worker that failed
	Percent     *int      `json:"percent,omitempty"`    // of new connections that a staged generation gets
}

// Result is the outcome of an operation.
type Result struct {
	OK          bool     `json:"ok"`
	Busy        bool     `json:"busy,omitempty"`    // refused, because another operation is under way
	Invalid     bool     `json:"invalid,omitempty"` // refused, because the request contradicts how gapless was started
	Generation  int      `json:"generation,omitempty"`
	Revision    int      `json:"revision,omitempty"`
	Reason      string   `json:"reason,omitempty"` // why not OK
	Tail        []string `json:"tail,omitempty"`   // the last lines of the worker that failed
	State       string   `json:"state,omitempty"`  // of Generation, if it is not in charge yet: GenerationStaged or GenerationWindow
	Percent     *int     `json:"percent,omitempty"`
	TookSeconds float64  `json:"took_seconds"`
}

// UpgradeRequest asks for an upgrade.
type UpgradeRequest struct {
	// WaitDrained puts the answer off until the old generation's last process is gone.
	WaitDrained bool `json:"wait_drained,omitempty"`
	// Stage has the new generation, when it is ready, wait beside the old one without new connections. The answer comes
	// then, or with Weights at the end.
	Stage bool `json:"stage,omitempty"`
	// Weights are shares of new connections in percent, from 1 to 100, each greater than the one before: a staged generation
	// gets them by itself, each for BakeSeconds, and is then promoted. They need Stage.
	Weights     []int   `json:"weights,omitempty"`
	BakeSeconds float64 `json:"bake_seconds,omitempty"`
	// KeepSeconds is how long the new generation has everything before it takes charge, so that it can be rolled back; absent:
	// as gapless was started with.
	KeepSeconds *float64 `json:"keep_seconds,omitempty"`
	// Verify are commands that sh runs while the generation is staged: without a share, with each of its shares, and before
	// it takes over. One that fails aborts it. VerifyHTTP are paths, PATH or PATH=STATUS, that it is asked for then,
	// VerifyProbes times each (0: 20, at most MaxProbes). A command that takes longer than VerifyTimeoutSeconds has failed
	// (0: no limit). They need Stage.
	Verify               []string `json:"verify,omitempty"`
	VerifyHTTP           []string `json:"verify_http,omitempty"`
	VerifyProbes         int      `json:"verify_probes,omitempty"`
	VerifyTimeoutSeconds float64  `json:"verify_timeout_seconds,omitempty"`
	// Preview is an address, [NAME=]IP:PORT, whose connections reach the new generation alone while it is staged or in its
	// window; NAME is the listener that is previewed, by default the first. It is refused where gapless was started with one.
	// It needs Stage.
	Preview string `json:"preview,omitempty"`
}

// MaxProbes is the greatest number of probes for a path at a step.
const MaxProbes = 10000

// ShiftRequest gives a staged generation a share of new connections.
type ShiftRequest struct {
	Percent int `json:"percent"` // 0 to 100
}

// PromoteRequest has a staged generation take over.
type PromoteRequest struct {
	// KeepSeconds is as in an UpgradeRequest; absent: as the upgrade said.
	KeepSeconds *float64 `json:"keep_seconds,omitempty"`
}

// AbortRequest takes a staged generation down.
type AbortRequest struct{}

// RollbackRequest gives everything back to the old generation, within the window.
type RollbackRequest struct{}

// ReloadRequest asks for a reload.
type ReloadRequest struct{}

// ScaleRequest asks for another number of workers.
type ScaleRequest struct {
	// Workers is 1 to MaxWorkers.
	Workers int `json:"workers"`
}

// MaxWorkers is the greatest number of workers.
const MaxWorkers = 4096

// StopRequest asks gapless to end.
type StopRequest struct {
	// Now kills the workers instead of draining them.
	Now bool `json:"now,omitempty"`
}
