package lifecycle

import (
	"time"

	"gapless/internal/control"

	"go.uber.org/zap"
)

// maxFailure bounds what the status says of an operation that failed, in bytes: the whole reason is in the log and in the answer.
const maxFailure = 300

// herald is how a master tells the parent, which tells the service manager above it, how it does. It belongs to the
// goroutine of live and govern, except for changed.
type herald struct {
	tell      func(state string) error
	changed   chan struct{} // of capacity 1: a worker's state has changed
	said      string        // the status, as told last
	failure   string        // why the last operation failed; "": it did not
	patience  *time.Ticker  // runs while something lawful takes its time
	reloading bool          // an upgrade or a reload is under way
}

func newHerald() *herald { return &herald{tell: tellParent, changed: make(chan struct{}, 1)} }

// kick has the status looked at again. It may be called from any goroutine.
func (h *herald) kick() {
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// say tells of a state, with the status in the same datagram.
func (h *herald) say(state, status string) error {
	h.said = status
	if state != "" {
		state += "\n"
	}
	return h.tell(state + "STATUS=" + status)
}

// failed notes for the status why an operation failed; reason is "" if it did not.
func (h *herald) failed(kind, reason string) {
	if reason != "" && kind == control.KindReload {
		reason = "reload failed: " + reason
	}
	h.failure = oneLine(reason, maxFailure)
}

// extend asks for patience: for the start, for an operation, for the end.
func (h *herald) extend(busy bool) {
	switch {
	case busy && h.patience == nil:
		h.patience = time.NewTicker(extendEvery)
		_ = h.tell(extension()) // at once: what is lawful here may be longer than what the manager would wait
	case !busy && h.patience != nil:
		h.patience.Stop()
		h.patience = nil
	}
}

// reloads tells whether the service manager is to think of an operation as a reload: what runs afterwards is what is then on
// disk. Another number of workers is none.
func reloads(kind string) bool { return kind == control.KindUpgrade || kind == control.KindReload }

// announce tells what has changed since the last call. A generation that is staged, or in its window, waits for orders or
// for time to pass: nothing is under way then, however long that lasts.
func (m *master) announce() {
	st := m.state.get()
	operating := m.op != nil && st != Holding
	m.herald.extend(operating || st != Serving && st != Holding)
	status, word := m.detail(m.controlState()), ""
	if reloading := operating && reloads(m.op.kind); reloading != m.herald.reloading {
		m.herald.reloading = reloading
		word = "READY=1"
		if reloading {
			word = "RELOADING=1"
		}
	}
	if word == "" && status == m.herald.said {
		return
	}
	if err := m.herald.say(word, status); err != nil {
		m.log.Debug("status not told", zap.Error(err))
	}
}
