package workerpool

import (
	"gapless/internal/known"
	"gapless/internal/notify"
)

// adapterGiven is what has been put into a worker that may be heard of. It belongs to the worker's goroutine.
type adapterGiven struct {
	Adapter
	command []string
	said    bool // READY=1 came, and was not enough
	early   bool // and was of a server that says so before it has loaded the application
}

// saidTooEarly is why a worker is still starting that has said READY=1.
const saidTooEarly = "it said READY=1, and does not accept yet"

// silence is why no adapter is in force in a worker that is ready and has not said a word of one.
func (a *adapterGiven) silence() string {
	switch {
	case a.Reason != "":
		return a.Reason
	case a.Name != "" && a.Expected:
		return "the adapter was not loaded: the command has cleared the environment, or closed its descriptors (a wrapper, " +
			"several workers of its own), or its interpreter was told to pass the environment over (python -I, -E)"
	}
	return ""
}

// waitsFor tells whether a worker that says READY=1 is still not ready. With an adapter in it that is the adapter's to say, or,
// where it is not heard of, the kernel's. Of a server that is known to say so too early (gunicorn) it always is the kernel's.
func (a *adapterGiven) waitsFor(m notify.Message, mode ReadyMode) bool {
	if !m.Ready() || mode != ReadyAuto {
		return false
	}
	early := known.SaysTooEarly(m.Fields["STATUS"], a.command)
	if !early && (a.Name == "" || !a.Expected) {
		return false
	}
	a.said, a.early = true, a.early || early
	return true
}
