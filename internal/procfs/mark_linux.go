package procfs

import (
	"fmt"
	"syscall"
)

// SignalMarked sends sig to every living descendant of a process that was started with a variable, given as KEY=VALUE, and
// to what descends from those, whether it was given the variable or not. It returns how many it reached.
func SignalMarked(root int, assignment string, sig syscall.Signal) (int, error) {
	n, err := signalAll(sig,
		func() ([]Stat, error) {
			all, err := Descendants(root)
			return marked(all, assignment), err
		},
		func(Stat) bool { return true })
	if err != nil {
		return n, fmt.Errorf("signal what has %s: %w", assignment, err)
	}
	return n, nil
}

// marked keeps those that have the variable, and their descendants. Ancestors come first in all.
func marked(all []Stat, assignment string) []Stat {
	var kept []Stat
	below := map[int]bool{}
	for _, s := range all {
		if !below[s.Parent] {
			if has, err := EnvironHas(s.PID, assignment); err != nil || !has {
				continue
			}
		}
		below[s.PID] = true
		kept = append(kept, s)
	}
	return kept
}
