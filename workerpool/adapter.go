package workerpool

import "gapless/internal/notify"

// adapterGiven is what has been put into a worker that may be heard of. It belongs to the worker's goroutine.
type adapterGiven struct {
	Adapter
	said bool // READY=1 came, and was not enough
}

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
// where it is not heard of, the kernel's: gunicorn says READY=1 before it has loaded the application.
func (a *adapterGiven) waitsFor(m notify.Message, mode ReadyMode) bool {
	if !m.Ready() || mode != ReadyAuto || a.Name == "" || !a.Expected {
		return false
	}
	a.said = true
	return true
}
