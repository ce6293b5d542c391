package upgrade

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Between two readings of a drain: the first comes soon, as most drains have nothing to wait for, the others so that
// reading takes no more than about a fifth of the time, however large the kernel's table is.
const (
	settleFirst = 2 * time.Millisecond
	settleMost  = 100 * time.Millisecond
	settleShare = 4
)

// settleUntold is how many readings in a row must say that a connection is not this worker's before it is believed: a
// server that forks may be between two lists of its processes.
const settleUntold = 2

// settleKernel is what a drain asks the kernel.
type settleKernel interface {
	// connections lists the half-open and open connections of the lane's address.
	connections() ([]connection, error)
	// held lists the inodes of the sockets that the worker or its descendants have open. known is false where this
	// process may not look.
	held() (inodes map[uint32]bool, known bool)
	// queue is the number of connections in the lane's accept queue.
	queue() (int, error)
}

// pair is what stays the same of a connection from its half-open state on: its inode and the kernel's cookie do not.
type pair struct{ local, remote netip.AddrPort }

// settling is the state of one drain. It decides; it neither waits nor reads.
type settling struct {
	members map[pair]member
	queued  bool // the lane's queue held something after the last reading
	first   bool
}

// member is a connection that this worker may not have read yet.
type member struct {
	baseline int64 // bytes that it had received at the first reading: those must be read
	untold   int   // how many readings in a row said that it is not this worker's
}

func newSettling() *settling { return &settling{first: true, queued: true} }

// observe takes a reading: the connections, and read after them the queue's length and what the worker holds. It says how
// many connections may still be unread by this worker.
func (s *settling) observe(connections []connection, held func() (map[uint32]bool, bool), queue int) (left int) {
	holds := func(inode uint32) bool {
		inodes, known := held()
		return inodes[inode] || !known
	}
	stay := make(map[pair]member, len(s.members))
	for _, c := range connections {
		key := pair{c.local, c.remote}
		m, old := s.members[key]
		if s.first {
			m.baseline = int64(c.received)
		} else if !old {
			continue // it came after the program was replaced, so it cannot be on this lane
		}
		accepted := c.inode != 0
		switch {
		case stateSynRecv&(1<<c.state) != 0, !accepted && s.queued:
			m.untold = 0
		case accepted && c.read() > 0 && c.read() >= m.baseline:
			continue
		case accepted && holds(c.inode):
			m.untold = 0
		default:
			// Another process has it; or it waits in a queue, and did when this lane's was last seen empty.
			if m.untold++; m.untold >= settleUntold {
				continue
			}
		}
		stay[key] = m
	}
	s.members, s.first, s.queued = stay, false, queue > 0
	return max(len(stay), queue)
}

// read is how many bytes the server has read.
func (c connection) read() int64 { return int64(c.received) - int64(c.unread) }

// Settle waits until nothing is unread that was on its way to a lane when it left the program, so that a stop signal can
// cost no request: each connection that was half-open, queued, or accepted but unread by the worker pid (or one of its
// descendants) has delivered its first bytes to it, or is gone. Connections that another process accepted do not count;
// with pid 0 none that has been accepted does, which is enough for a worker that loses none of those.
//
// It is called after Switch has withdrawn the lane. After ceiling it gives up and returns how many connections are left
// (clients that connect and say nothing); with a ceiling of 0 or less it only counts. A plain lane is shared with the
// workers that stay and can never be empty, so Settle returns 0 for it at once.
//
// An error means that the kernel could not be asked, or ctx's; left is then what was last known.
func (inv *Inventory) Settle(ctx context.Context, lane *Lane, pid int, ceiling time.Duration) (left int, err error) {
	if lane.group.mode == ModePlain {
		return 0, nil
	}
	kernel, err := newSettleKernel(lane, pid)
	if err != nil {
		return 0, fmt.Errorf("settle %s: %w", lane.name, err)
	}
	began := time.Now()
	inv.WaitProgram()
	left, err = settle(ctx, kernel, ceiling-time.Since(began))
	if err != nil {
		return left, fmt.Errorf("settle %s: %w", lane.name, err)
	}
	fields := []zap.Field{zap.String("lane", lane.name), zap.Int("pid", pid), zap.Duration("took", time.Since(began))}
	if left > 0 {
		inv.log.Warn("connections left unread at the end of the settling time", append(fields, zap.Int("left", left))...)
	} else {
		inv.log.Debug("lane settled", fields...)
	}
	return left, nil
}

// settle repeats readings until none is left or the time is up.
func settle(ctx context.Context, kernel settleKernel, ceiling time.Duration) (left int, err error) {
	end := time.Now().Add(ceiling)
	state := newSettling()
	for {
		began := time.Now()
		if left, err = observeOnce(kernel, state, left); err != nil || left == 0 {
			return left, err
		}
		now := time.Now()
		if !now.Before(end) {
			return left, nil
		}
		pause := min(max(settleFirst, settleShare*now.Sub(began)), settleMost, end.Sub(now))
		select {
		case <-ctx.Done():
			return left, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// observeOnce takes one reading; on an error the number that was known stays.
func observeOnce(kernel settleKernel, state *settling, known int) (left int, err error) {
	connections, err := kernel.connections()
	if err != nil {
		return known, err
	}
	// Only now may the queue be read; what the worker holds is asked for only if some connection makes it matter, and
	// both are later than the list of connections in any case.
	queue, err := kernel.queue()
	if err != nil {
		return known, err
	}
	return state.observe(connections, sync.OnceValues(kernel.held), queue), nil
}
