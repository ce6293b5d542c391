package workerpool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"gapless/internal/pidfd"
	"gapless/internal/procfs"
)

// Process is a running process: one that this master started, or one that it took over. *pidfd.Process is one.
type Process interface {
	PID() int
	// Signal and SignalGroup send through the pidfd; os.ErrProcessDone says that nobody is left.
	Signal(sig syscall.Signal) error
	// SignalGroup reaches every process of the group that this process leads, or has led.
	SignalGroup(sig syscall.Signal) error
	// Done is closed when the process has ended.
	Done() <-chan struct{}
	// Status tells how, after Done.
	Status() pidfd.Status
	// File returns a duplicate of the pidfd, for the next master.
	File() (*os.File, error)
	Close() error
}

// Spawner starts processes.
type Spawner interface {
	// Spawn returns when the command runs, or with the reason why it cannot.
	Spawn(Launch) (Process, error)
	// Attach takes over a process by the pidfd that an earlier master passed on. It takes the file over.
	Attach(pid int, pidfd *os.File) (Process, error)
}

// Prober tells from outside whether a process waits for connections.
type Prober interface {
	// Waiting reports whether pid or a descendant waits for connections on a listening socket with one of the
	// inodes, and how. Evidence that cannot be read at all is an error.
	Waiting(ctx context.Context, pid int, inodes map[uint64]bool) (procfs.Evidence, error)
	// Took reports whether pid or a descendant has open a connection that was made to one of the sockets. It is dear.
	Took(pid int, inodes map[uint64]bool) bool
	// Elsewhere returns the addresses at which pid or a descendant listens with sockets other than these.
	Elsewhere(pid int, inodes map[uint64]bool) []string
}

// Socket is a listening socket for a worker.
type Socket struct {
	Name  string // of its address, for LISTEN_FDNAMES
	Lane  string // unique, for the Gate
	Inode uint64
	File  *os.File // the Gate's; it stays open
}

// Asker asks a worker by a request of its own.
type Asker interface {
	// Ask returns nil if the worker answers a GET of the path with a status below 400. ctx bounds it.
	Ask(ctx context.Context, w Info, path string) error
}

// Gate stands between the workers and new connections. Its methods are called from the workers' goroutines.
type Gate interface {
	// Sockets returns those that a worker of this slot shall accept from.
	Sockets(slot int) ([]Socket, error)
	// Admit gives a worker that is ready its share of new connections.
	Admit(w Info) error
	// Withdraw takes the share away and returns when what the worker had been given is read; it is bounded in time.
	Withdraw(w Info)
	// Release follows the worker's end; was is the state in which the end came.
	Release(w Info, was State)
}

// Launch is all that it takes to start a worker.
type Launch struct {
	Path string   // the executable, resolved
	Args []string // the argument vector, from the command's own name on
	Dir  *os.File // the working directory
	Exe  *os.File // the pinned executable, to be run instead of Path; nil: run Path
	Env  []string

	Sockets []Socket
	Extra   []Extra

	Stdout, Stderr *os.File // nil: those of this process

	UID, GID *int
	Groups   []int
	Umask    *int
	NoFile   uint64        // limit on open files; 0: as many as are allowed
	Watchdog time.Duration // for WATCHDOG_USEC; 0: none
	Blocking bool          // the sockets block in accept(2)

	Adapter Adapter
}

// Adapter says what has been put into the command, so that it can take part in handoffs without knowing of gapless.
type Adapter struct {
	Name     string // "": nothing
	Expected bool   // that it is not heard of is worth telling
	Reason   string // why nothing has been put there, although it is a command that an adapter is known for
}

// Extra is a descriptor whose number the worker finds in an environment variable.
type Extra struct {
	Variable string
	File     *os.File
}

// Errors that callers act on.
var (
	// ErrFrozen says that the pool starts nothing at the moment: it is about to be handed over, or it stops.
	ErrFrozen = errors.New("the pool starts no workers now")
	// ErrNotReady says that a worker was not seen to serve in time.
	ErrNotReady = errors.New("not ready in time")
	// ErrNoEvidence says that the kernel would not tell whether a worker serves.
	ErrNoEvidence = errors.New("readiness cannot be seen")
)

// StartError says why a worker never became ready.
type StartError struct {
	Worker ID
	Status pidfd.Status // how it ended, if it ended by itself
	Tail   []string
	Err    error // nil when it ended by itself
}

func (e *StartError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("worker %s: %v", e.Worker, e.Err)
	}
	return fmt.Sprintf("worker %s ended before it was ready: %s", e.Worker, e.Status)
}

func (e *StartError) Unwrap() error { return e.Err }
