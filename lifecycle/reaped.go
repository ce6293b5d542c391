package lifecycle

import (
	"sync"

	"gapless/internal/pidfd"
)

// remembered is how many ends the parent remembers: many more than masters end at once, and few enough that no PID among
// them has been used twice.
const remembered = 64

// reaped remembers how the last children ended, for kernels whose pidfds do not tell it. It may be used by several
// goroutines.
type reaped struct {
	mu   sync.Mutex
	last [remembered]struct {
		pid    int
		status pidfd.Status
	}
	n int // ends so far
}

// add notes an end.
func (r *reaped) add(pid int, status pidfd.Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := &r.last[r.n%remembered]
	e.pid, e.status = pid, status
	r.n++
}

// status is how the process with this PID ended last.
func (r *reaped) status(pid int) (status pidfd.Status, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := r.n - 1; i >= 0 && i >= r.n-remembered; i-- {
		if e := r.last[i%remembered]; e.pid == pid {
			return e.status, true
		}
	}
	return status, false
}
