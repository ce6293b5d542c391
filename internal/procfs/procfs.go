// Package procfs reads what the kernel knows about processes: whether a worker waits for connections, who descends from
// whom, what a process is and uses, and who holds a port.
//
// Invariants:
//   - readings are snapshots. A process that ends while it is being read is left out or is os.ErrProcessDone; it is never
//     mistaken for another: what is signalled here is pinned by a pidfd first and compared after.
//   - what may not be read is ErrNoRights, never "no".
//   - nothing here waits: callers poll at the pace that they like.
//
// Only Linux has what is read here; elsewhere every function fails with ErrNotSupported.
package procfs

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

var (
	// ErrNoRights says that the kernel would not let us look into a process. See RightsError.
	ErrNoRights = errors.New("no right to look into a process")
	// ErrNotSupported says that this system has no /proc that could be read.
	ErrNotSupported = errors.New("process readings are not supported here: they need Linux with /proc")
)

// RightsError names the process that may not be read. It is ErrNoRights and unwraps to the kernel's error.
type RightsError struct {
	PID      int
	UID, GID int // effective IDs of the process; -1 if even these are hidden
	Err      error
}

// Error says what is in the way and what mends it.
func (e *RightsError) Error() string {
	who := "of another user"
	if e.UID >= 0 {
		who = "of uid " + strconv.Itoa(e.UID)
	}
	return fmt.Sprintf("look into pid %d (%s): %v: it takes the same uid and gid, or CAP_SYS_PTRACE", e.PID, who, e.Err)
}

// Unwrap makes the error match ErrNoRights and its cause.
func (e *RightsError) Unwrap() []error { return []error{ErrNoRights, e.Err} }

// How is the way in which a process waits for connections.
type How string

// The ways that can be seen.
const (
	Epoll  How = "epoll"  // the socket is in an epoll set of the process
	Accept How = "accept" // a thread is blocked in accept or accept4
	Poll   How = "poll"   // a thread is blocked in poll, ppoll, select or pselect
)

// Evidence is what was seen of a process tree that waits for connections. The zero Evidence: nothing yet.
type Evidence struct {
	PID int `json:"pid,omitempty"` // the process that waits: the one asked about or a descendant
	How How `json:"how,omitempty"`
	// Blind is a process whose system calls may not be looked at (Yama, for one), or 0: one that waits by accept or
	// poll instead of epoll would not be seen there.
	Blind int `json:"blind,omitempty"`
}

// Found reports whether something waits.
func (e Evidence) Found() bool { return e.How != "" }

// Stat is one process as /proc/PID/stat shows it. PID and Start together name a process for good.
type Stat struct {
	PID, Parent, Group, Session int
	Start                       uint64 // clock ticks from boot to its start
	State                       byte   // as ps prints it: R, S, D, T, Z, …
	Threads                     int
	Command                     string // the kernel's name for it, at most 15 bytes; not its argument list
}

// Dead reports whether the process is a zombie or about to vanish. One whose first thread alone has ended is not.
func (s Stat) Dead() bool {
	return (s.State == 'Z' || s.State == 'X' || s.State == 'x') && s.Threads <= 1
}

// Memory is what a process occupies, in bytes.
type Memory struct {
	RSS int64 // resident, shared pages counted in full
	PSS int64 // shared pages counted by their share; 0 where it may not be read
}

// parseStat reads one line of /proc/PID/stat. The command stands in parentheses and may hold any byte, these included.
func parseStat(line string) (Stat, error) {
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 0 || end < open {
		return Stat{}, fmt.Errorf("parse stat line %.64q: no command", line)
	}
	s := Stat{Command: line[open+1 : end]}
	rest := strings.Fields(line[end+1:])
	const state, parent, group, session, threads, start = 0, 1, 2, 3, 17, 19
	if len(rest) <= start || len(rest[state]) != 1 {
		return Stat{}, fmt.Errorf("parse stat line %.64q: %d fields after the command", line, len(rest))
	}
	s.State = rest[state][0]
	var err error
	number := func(text string) int {
		n, e := strconv.Atoi(strings.TrimSpace(text))
		err = errors.Join(err, e)
		return n
	}
	s.PID = number(line[:open])
	s.Parent, s.Group, s.Session, s.Threads = number(rest[parent]), number(rest[group]), number(rest[session]), number(rest[threads])
	var startErr error
	s.Start, startErr = strconv.ParseUint(rest[start], 10, 64)
	if err = errors.Join(err, startErr); err != nil {
		return Stat{}, fmt.Errorf("parse stat line %.64q: %w", line, err)
	}
	return s, nil
}

// watches reports whether the fdinfo of an epoll descriptor lists one of the sockets, for reading.
func watches(fdinfo string, inodes map[uint64]bool) bool {
	const readable = 0x1 // EPOLLIN; a one-shot entry that has fired lacks it
	for line := range strings.Lines(fdinfo) {
		if !strings.HasPrefix(line, "tfd:") {
			continue
		}
		fields := strings.Fields(line)
		var events, ino uint64
		for i, f := range fields {
			if f == "events:" && i+1 < len(fields) {
				events, _ = strconv.ParseUint(fields[i+1], 16, 64) // unreadable is 0: not for reading
			}
			if v, ok := strings.CutPrefix(f, "ino:"); ok {
				ino, _ = strconv.ParseUint(v, 16, 64) // unreadable is 0: no socket
			}
		}
		if events&readable != 0 && inodes[ino] {
			return true
		}
	}
	return false
}

// parseSyscall reads /proc/PID/task/TID/syscall: the number and up to six arguments of the call that a thread is blocked
// in. ok is false for one that runs or is blocked elsewhere.
func parseSyscall(text string) (number int, args [6]uint64, ok bool) {
	fields := strings.Fields(text)
	if len(fields) < 7 {
		return 0, args, false
	}
	number, err := strconv.Atoi(fields[0])
	if err != nil || number < 0 {
		return 0, args, false
	}
	for i := range args {
		if args[i], err = strconv.ParseUint(strings.TrimPrefix(fields[i+1], "0x"), 16, 64); err != nil {
			return 0, args, false
		}
	}
	return number, args, true
}
