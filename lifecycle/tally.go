package lifecycle

import (
	"sync"

	"gapless/internal/control"
	"gapless/workerpool"
)

// tally counts how far a reload or a scaling has got, for those who wait for it. nil counts nothing.
type tally struct {
	kind   string // control's, of the operation
	leaves bool   // workers are counted when they are gone, else when they are ready
	counts func(workerpool.Info) bool
	total  int

	mu    sync.Mutex
	slots map[int]bool // that have been counted: a worker that dies and is replaced meanwhile is one
}

// heed takes in a worker's change of state and, if it counts, emits the event that tells of it.
func (t *tally) heed(e workerpool.Event, emit func(control.Event)) {
	if t == nil || e.Role != "" || !t.counts(e.Info) ||
		!t.leaves && e.State != workerpool.Ready || t.leaves && e.State != workerpool.Exited {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock() // also of the sending: the numbers are to come in order
	if t.slots[e.Slot] || len(t.slots) == t.total {
		return
	}
	t.slots[e.Slot] = true
	count := t.event()
	count.Generation = e.Generation
	emit(count)
}

// event tells where it stands.
func (t *tally) event() control.Event {
	e := control.Event{Kind: t.kind, State: "starting", Ready: len(t.slots), Total: t.total}
	switch {
	case t.leaves:
		e.State = "drain"
	case e.Ready == e.Total:
		e.State = "ready"
	}
	return e
}

// begun begins a tally, and tells of it if there is something to count.
func (m *master) begun(t *tally) {
	t.slots = make(map[int]bool)
	m.tally.Store(t)
	if t.total > 0 {
		e := t.event()
		e.Generation = m.generation
		m.emit(e)
	}
}

// reloading counts the workers of a new revision.
func (m *master) reloading(revision int) *tally {
	return &tally{kind: control.KindReload, total: len(m.pool.Slots()), counts: func(i workerpool.Info) bool {
		return i.Generation == m.generation && i.Revision == revision
	}}
}

// scaling counts the workers that come, or go, until there are n.
func (m *master) scaling(n int) *tally {
	slots := m.pool.Slots()
	t := &tally{kind: control.KindScale, leaves: n < len(slots), total: n - len(slots)}
	from := len(slots)
	if t.leaves {
		from, t.total = n, 0
		for _, s := range slots[n:] {
			if s.PID != 0 {
				t.total++
			}
		}
	}
	t.counts = func(i workerpool.Info) bool { return i.Generation == m.generation && i.Slot >= from }
	return t
}
