package logging

import (
	"errors"
	"io"
	"sync"
	"syscall"
	"time"
)

// sinkRoom is how many bytes of the log wait to be written, at most, before lines are dropped.
const sinkRoom = 1 << 20

// syncPatience is how long Sync waits for a place that may be blocked, and busyPause is between two attempts at one whose
// other holders have set it not to block.
const (
	syncPatience = 500 * time.Millisecond
	busyPause    = 5 * time.Millisecond
)

// sink writes lines to a place that may take none, such as a pipe that nobody reads or a terminal that was stopped: then
// they wait, and when too many do they are dropped, and where they are missing it is said how many. Nobody who logs waits.
//
// It writes on a goroutine that runs while there is something to write. Sync waits for that one.
type sink struct {
	out     io.Writer
	missing func(n int) []byte // a line that says that n are

	mu      sync.Mutex
	waiting [][]byte
	size    int // of waiting, in bytes
	dropped int // lines, after what waits
	writing bool
	idle    chan struct{} // closed when writing ends; made when it begins
}

func newSink(out io.Writer, missing func(int) []byte) *sink {
	return &sink{out: out, missing: missing}
}

// Write takes a line. It never fails, and never blocks.
func (s *sink) Write(line []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.size+len(line) > sinkRoom {
		s.dropped++
		return len(line), nil
	}
	s.tell()
	s.add(append([]byte(nil), line...)) // it is the logger's
	if !s.writing {
		s.writing, s.idle = true, make(chan struct{})
		go s.write(s.idle)
	}
	return len(line), nil
}

// add puts a line behind those that wait; mu is held.
func (s *sink) add(line []byte) {
	s.waiting = append(s.waiting, line)
	s.size += len(line)
}

// tell says, behind all that waits, what was dropped; mu is held.
func (s *sink) tell() {
	if s.dropped > 0 {
		s.add(s.missing(s.dropped))
		s.dropped = 0
	}
}

// write writes until nothing waits any more.
func (s *sink) write(idle chan struct{}) {
	defer close(idle)
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if len(s.waiting) == 0 {
			s.tell()
		}
		if len(s.waiting) == 0 {
			s.waiting, s.writing = nil, false
			return
		}
		line := s.waiting[0]
		s.waiting[0] = nil
		s.waiting = s.waiting[1:]
		s.mu.Unlock()
		s.writeLine(line)
		s.mu.Lock()
		s.size -= len(line) // only now: what is being written waits as well
	}
}

// writeLine gives up on a place that is gone.
func (s *sink) writeLine(line []byte) {
	for len(line) > 0 {
		n, err := s.out.Write(line)
		line = line[max(0, n):]
		switch {
		case errors.Is(err, syscall.EAGAIN):
			<-time.After(busyPause)
		case err != nil:
			return
		}
	}
}

// Sync waits until all that was taken before is written, or for a moment if the place takes nothing.
func (s *sink) Sync() error {
	s.mu.Lock()
	idle, writing := s.idle, s.writing
	s.mu.Unlock()
	if !writing {
		return nil
	}
	t := time.NewTimer(syncPatience)
	defer t.Stop()
	select {
	case <-idle:
		return nil
	case <-t.C:
		return errBlocked
	}
}

var errBlocked = errors.New("standard error takes no more; what was logged last is not written")
