package lifecycle

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"gapless/internal/notify"
	"gapless/internal/packet"
	"gapless/workerpool"
)

// Names in the store. They stand in FDNAME= of sd_notify's messages, which takes no colon and at most 255 bytes.
const (
	maxStoreName = 255
	// privatePrefix marks what describes one master and is of no use to another one, unless that follows it because it
	// died: each master has its own of that name.
	privatePrefix = "own/"
)

// storeVariable tells a master that is started in place of a dead one where the manifest of the store is. The descriptors
// follow it.
const storeVariable = "GAPLESS_STORE_FD"

// maxStored bounds the entries: some for each worker and lane, of which a host has hundreds at most.
const maxStored = 1 << 16

// storeKey is an entry's name, and its owner if it is private.
type storeKey struct {
	name  string
	owner int // PID of the master; 0: not private
}

type storeEntry struct {
	owner int   // PID of the master that stored it, or of the one that has taken charge since
	fds   []int // in the order in which they came
}

// store is what the parent keeps for a master that dies. What always holds:
//   - an entry belongs to one master. That one may replace or remove it; another one's is left alone, except that the
//     master in charge may remove all, and make it its own by storing it anew.
//   - what a master stored that never took charge goes when that master goes.
//   - the descriptors are bare numbers: the parent never reads or accepts from them, and is not woken by them.
//
// It belongs to the goroutine of the parent's govern.
type store struct {
	entries map[storeKey]*storeEntry
	dropped func(name string) // told of each entry that goes; nil: nobody is
}

func newStore() *store { return &store{entries: make(map[storeKey]*storeEntry)} }

func keyOf(name string, owner int) storeKey {
	if strings.HasPrefix(name, privatePrefix) {
		return storeKey{name, owner}
	}
	return storeKey{name, 0}
}

// put takes the descriptors over. They are closed if they are refused. inCharge says that owner is the master in charge: what
// a starting one has stored, of a worker that is to have clients before that master takes charge, becomes its own.
func (s *store) put(name string, owner int, fds []int, inCharge bool) error {
	key := keyOf(name, owner)
	err := error(nil)
	switch held := s.entries[key]; {
	case name == "" || len(name) > maxStoreName || strings.ContainsRune(name, ':'):
		err = fmt.Errorf("store %.300q: it is no name: 1 to %d bytes without a colon", name, maxStoreName)
	case len(fds) == 0:
		err = fmt.Errorf("store %q: no descriptor came along", name)
	case held != nil && held.owner != owner && !inCharge:
		// A starting master keeps again what it was given; what counts is that it is here.
		notify.CloseFDs(fds)
		return nil
	case held == nil && len(s.entries) >= maxStored:
		err = fmt.Errorf("store %q: there are %d entries already", name, maxStored)
	case held != nil:
		notify.CloseFDs(held.fds)
	}
	if err != nil {
		notify.CloseFDs(fds)
		return err
	}
	s.entries[key] = &storeEntry{owner: owner, fds: fds}
	return nil
}

// remove forgets an entry; inCharge says that the one who asks is the master in charge.
func (s *store) remove(name string, owner int, inCharge bool) {
	key := keyOf(name, owner)
	if e := s.entries[key]; e != nil && (e.owner == owner || inCharge) {
		s.drop(key)
	}
}

func (s *store) drop(key storeKey) {
	notify.CloseFDs(s.entries[key].fds)
	delete(s.entries, key)
	if s.dropped != nil {
		s.dropped(key.name)
	}
}

// forget drops all that a master has stored that is gone and never took charge.
func (s *store) forget(owner int) {
	for key, e := range s.entries {
		if e.owner == owner {
			s.drop(key)
		}
	}
}

// inherit gives what one master had stored to the one that takes charge after it, except for what is private.
func (s *store) inherit(from, to int) {
	for key, e := range s.entries {
		switch {
		case e.owner != from:
		case key.owner != 0:
			s.drop(key)
		default:
			e.owner = to
		}
	}
}

// has tells whether a master has stored something of that name.
func (s *store) has(name string, owner int) bool { return s.entries[keyOf(name, owner)] != nil }

// manifest is what a master that is started with the store finds in the first descriptor of it: the names of the others.
type manifest struct {
	Entries []manifestEntry `json:"entries"`
}

type manifestEntry struct {
	Name  string `json:"name"`
	Count int    `json:"count"` // of descriptors, which follow each other
}

// workers are the processes of the workers that masters other than this one have stored.
func (s *store) workers(but int) (pids []int) {
	for key, e := range s.entries {
		var id workerpool.ID
		if text, ok := strings.CutPrefix(key.name, workerPrefix); ok && e.owner != but && readID(text, &id) {
			pids = append(pids, id.PID)
		}
	}
	return pids
}

// workerIDs returns all workers that are stored.
func (s *store) workerIDs() (ids []workerpool.ID) {
	for key := range s.entries {
		var id workerpool.ID
		if text, ok := strings.CutPrefix(key.name, workerPrefix); ok && readID(text, &id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// takeSteps returns the marks of the commands that a master was running, and forgets them.
func (s *store) takeSteps(owner int) (marks []string) {
	for key := range s.entries {
		if mark, ok := strings.CutPrefix(key.name, stepPrefix); ok && key.owner == owner {
			marks = append(marks, mark)
			s.drop(key)
		}
	}
	return marks
}

// contents returns what the successor of a dead master needs, in a fixed order.
func (s *store) contents(owner int) (m manifest, fds []int) {
	keys := slices.SortedFunc(maps.Keys(s.entries), func(a, b storeKey) int { return strings.Compare(a.name, b.name) })
	for _, key := range keys {
		e := s.entries[key]
		if e.owner != owner {
			continue
		}
		m.Entries = append(m.Entries, manifestEntry{key.name, len(e.fds)})
		fds = append(fds, e.fds...)
	}
	return m, fds
}

// pack writes a manifest into anonymous memory.
func (m manifest) pack() (*os.File, error) {
	f, err := anonymousFile("gapless-store")
	if err != nil {
		return nil, err
	}
	if err := json.NewEncoder(f).Encode(m); err != nil {
		f.Close()
		return nil, fmt.Errorf("write the store's manifest: %w", err)
	}
	return f, nil
}

// estate is the store as the master that gets it sees it: files by name.
type estate map[string][]*os.File

// take removes the files of a name, which are the caller's then; nil unless there are exactly n.
func (e estate) take(name string, n int) []*os.File {
	files := e[name]
	delete(e, name)
	if len(files) != n {
		packet.CloseAll(files)
		return nil
	}
	return files
}

// close closes what nobody took.
func (e estate) close() {
	for _, files := range e {
		packet.CloseAll(files)
	}
}
