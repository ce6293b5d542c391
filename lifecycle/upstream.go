package lifecycle

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"gapless/internal/control"
	"gapless/internal/notify"

	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"
)

// How the patience of the service manager above is asked for while something lawful takes its time: extendBy is how long it
// is to wait at least, said anew every extendEvery, so that two messages may be late before it kills anything.
const (
	extendBy    = 15 * time.Second
	extendEvery = 5 * time.Second
)

// extendField asks the manager above not to lose its patience for so many microseconds.
const extendField = "EXTEND_TIMEOUT_USEC"

// word is what a master has said of itself last.
type word struct {
	status    string
	ready     bool // its generation serves
	reloading bool // an upgrade or a reload is under way
}

// hear takes a message in. What a message does not speak of stays.
func (w *word) hear(fields map[string]string) {
	if status, ok := fields["STATUS"]; ok {
		w.status = status
	}
	switch {
	case fields["READY"] == "1":
		w.ready, w.reloading = true, false
	case fields["RELOADING"] == "1":
		w.reloading = true
	}
}

// upstream is the service manager above the parent: systemd, or another one that speaks sd_notify. What it is told, it is
// told by the parent alone, from the goroutine of govern (the watchdog's beat excepted, which may come at any time):
//   - READY=1 once the first generation serves, with MAINPID, which never changes.
//   - RELOADING=1 with the time, in one datagram, when an upgrade or a reload begins, and READY=1 when it is over, however it
//     ended; STATUS says how.
//   - STATUS with each change of what the first line of `gapless status` says.
//   - STOPPING=1 once, when the first order to stop comes. After it come only STATUS and EXTEND_TIMEOUT_USEC.
//   - EXTEND_TIMEOUT_USEC for as long as a master, or the parent in its last moments, says that it is getting on.
//
// Masters and workers never speak to it: they do not know its address.
type upstream struct {
	address string // "": there is no manager
	version string
	log     *zap.Logger
	send    func(address, state string, fds ...int) error // replaced in tests
	vault   vault

	ready, reloading, stopping bool
	status                     string // as told last
	deaf                       bool   // the last message did not get through
}

// newUpstream takes NOTIFY_SOCKET and FDSTORE for the parent.
func newUpstream(getenv func(string) string, version string, log *zap.Logger) *upstream {
	u := &upstream{address: getenv("NOTIFY_SOCKET"), version: version, log: log, send: notify.SendFDs}
	u.vault = newVault(u, getenv("FDSTORE"))
	return u
}

// follow passes on what has changed in the words of the master in charge.
func (u *upstream) follow(w word) {
	var lines []string
	switch {
	case u.stopping:
	case w.reloading && u.ready && !u.reloading:
		u.reloading = true
		// One datagram: the time is what tells systemd that this is the answer to its own signal.
		lines = append(lines, daemon.SdNotifyReloading, strings.TrimSpace(daemon.SdNotifyMonotonicUsec()))
	case w.ready && !w.reloading && (!u.ready || u.reloading):
		lines = append(lines, daemon.SdNotifyReady)
		if !u.ready {
			lines = append(lines, "MAINPID="+strconv.Itoa(os.Getpid()))
		}
		u.ready, u.reloading = true, false
	}
	status := u.status
	if w.status != "" {
		status = control.Status{Version: u.version, ParentPID: os.Getpid(), Detail: w.status}.Headline()
	}
	if status != "" && (status != u.status || len(lines) > 0) {
		u.status = status
		lines = append(lines, "STATUS="+status)
	}
	if len(lines) > 0 {
		u.tell(strings.Join(lines, "\n"))
	}
}

// stop says that the end has begun, and leaves nothing with the manager: the next start may be of another configuration.
func (u *upstream) stop() {
	if u.stopping {
		return
	}
	u.stopping = true
	u.tell(daemon.SdNotifyStopping)
	u.vault.empty()
}

// fail says that the end has begun without an order. What the manager keeps stays with it, for the next start.
func (u *upstream) fail(status string) {
	if !u.stopping {
		u.stopping = true
		u.tell(daemon.SdNotifyStopping)
	}
	u.follow(word{status: status})
}

// extend passes on that something takes its time.
func (u *upstream) extend(usec string) {
	if n, err := strconv.ParseUint(usec, 10, 63); err == nil && n > 0 {
		u.tell(extendField + "=" + usec)
	}
}

// extension is the message that asks for patience.
func extension() string { return fmt.Sprintf("%s=%d", extendField, extendBy.Microseconds()) }

// beat is the watchdog's.
func (u *upstream) beat() {
	if err := u.send(u.address, daemon.SdNotifyWatchdog); err != nil {
		u.log.Warn("The service manager does not hear the watchdog", zap.Error(err))
	}
}

// tell sends one datagram. That nobody listens is said once.
func (u *upstream) tell(state string, fds ...int) {
	if u.address == "" {
		return
	}
	err := u.send(u.address, state, fds...)
	if err != nil && !u.deaf {
		u.log.Warn("The service manager does not listen", zap.Error(err))
	}
	u.deaf = err != nil
}
