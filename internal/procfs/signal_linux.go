package procfs

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxRounds bounds how often a group is listed again for what it forked meanwhile. A fork bomb is left to its owner.
const maxRounds = 10

// SignalSession sends sig to every living process of a session, except this one, and returns how many it reached.
// It lists again until nobody new is there, so that a member cannot escape by forking.
func SignalSession(session int, sig syscall.Signal) (int, error) {
	return SignalSessionExcept(session, sig, func(Stat) bool { return false })
}

// SignalSessionExcept is SignalSession without the processes that spared returns true for.
func SignalSessionExcept(session int, sig syscall.Signal, spared func(Stat) bool) (int, error) {
	n, err := signalAll(sig,
		func() ([]Stat, error) {
			members, err := SessionMembers(session)
			return slices.DeleteFunc(members, spared), err
		},
		func(s Stat) bool { return s.Session == session })
	if err != nil {
		return n, fmt.Errorf("signal session %d: %w", session, err)
	}
	return n, nil
}

// SignalDescendants sends sig to every living descendant of a process, but not to the process itself, and returns how
// many it reached. One whose parent died before it was listed belongs to its reaper and is not found: end the ancestor last.
func SignalDescendants(pid int, sig syscall.Signal) (int, error) {
	n, err := signalAll(sig, func() ([]Stat, error) { return Descendants(pid) }, func(Stat) bool { return true })
	if err != nil {
		return n, fmt.Errorf("signal the descendants of pid %d: %w", pid, err)
	}
	return n, nil
}

func signalAll(sig syscall.Signal, members func() ([]Stat, error), still func(Stat) bool) (int, error) {
	type identity struct {
		pid   int
		start uint64
	}
	done := map[identity]bool{}
	reached := 0
	var errs []error
	for range maxRounds {
		list, err := members()
		if err != nil && !errors.Is(err, os.ErrProcessDone) {
			return reached, errors.Join(append(errs, err)...)
		}
		fresh := false
		for _, s := range list {
			id := identity{s.PID, s.Start}
			if s.Dead() || s.PID == os.Getpid() || done[id] {
				continue
			}
			done[id], fresh = true, true
			sent, err := signalOne(s, sig, still)
			if sent {
				reached++
			}
			if err != nil {
				errs = append(errs, err)
			}
		}
		if !fresh {
			break
		}
	}
	return reached, errors.Join(errs...)
}

// signalOne pins the process first and then makes sure that it is the one that was listed: the PID may have been
// reused between the two.
func signalOne(s Stat, sig syscall.Signal, still func(Stat) bool) (bool, error) {
	// A bare descriptor: a pidfd.Process would reap a child of ours that its owner waits for.
	fd, err := unix.PidfdOpen(s.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open a pidfd for pid %d: %w", s.PID, err)
	}
	defer unix.Close(fd)
	now, err := ReadStat(s.PID)
	if err != nil || now.Start != s.Start || !still(now) {
		return false, nil // gone, and perhaps somebody else's PID by now
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return false, fmt.Errorf("send %s to pid %d: %w", sig, s.PID, err)
	}
	return true, nil
}
