// Package deadlines holds what the time limits of gapless come to together, and what that means for the manager above it:
// systemd and Kubernetes each kill what takes longer than they were told. It is pure: settings in, durations and warnings
// out.
//
// Invariant: a limit that StartLimit or StopLimit returns is never shorter than what gapless may take by its settings, so
// that the manager above only ever ends a gapless that has failed to keep its own limits.
package deadlines

import (
	"fmt"
	"net"
	"strings"
	"time"
)

// The margins are for what has no limit of its own: the start of gapless itself and of the workers' processes, and their
// end after they were killed.
const (
	StartMargin = 15 * time.Second
	StopMargin  = 10 * time.Second
)

// Settings are those of `gapless run` that have to do with time, and what decides whether a health check can be answered.
type Settings struct {
	BeforeStart        bool          // there are previous steps
	BeforeStartTimeout time.Duration // for them together; 0: no limit
	StartTimeout       time.Duration // 0: no limit
	LameDuck           time.Duration
	Settle             time.Duration
	DrainTimeout       time.Duration // 0: no limit
	DrainExtra         time.Duration
	CloseSpread        time.Duration
	Health             string   // address of the health endpoint; "": none
	Listen             []string // addresses, as upgrade.Address writes them
}

// StartLimit returns how long a start or an upgrade may take, with a margin. It has none, and ok is false, where a flag
// says so.
func (s Settings) StartLimit() (limit time.Duration, ok bool) {
	if s.StartTimeout == 0 || s.BeforeStart && s.BeforeStartTimeout == 0 {
		return 0, false
	}
	limit = s.StartTimeout + StartMargin
	if s.BeforeStart {
		limit += s.BeforeStartTimeout
	}
	return limit, true
}

// StopLimit returns how long a full stop may take, with a margin. It has none, and ok is false, where a flag says so.
func (s Settings) StopLimit() (limit time.Duration, ok bool) {
	if s.DrainTimeout == 0 {
		return 0, false
	}
	return s.LameDuck + s.Settle + s.DrainTimeout + s.DrainExtra + StopMargin, true
}

// stopSum shows how StopLimit comes about.
func (s Settings) stopSum() string {
	var parts []string
	for _, p := range []struct {
		flag string
		d    time.Duration
	}{{"--lame-duck", s.LameDuck}, {"--settle", s.Settle}, {"--drain-timeout", s.DrainTimeout}, {"--drain-extra", s.DrainExtra}} {
		if p.d > 0 {
			parts = append(parts, p.flag+" "+Text(p.d))
		}
	}
	return strings.Join(parts, " + ") + " + " + Text(StopMargin) + " to end"
}

// Text writes a duration without the units that are zero: 1m30s, 2m, 45s.
func Text(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// Platform is what runs gapless.
type Platform string

// The platforms.
const (
	Systemd    Platform = "systemd"
	Kubernetes Platform = "kubernetes"
)

// platform is what a platform does if nobody tells it otherwise.
type platform struct {
	start, stop       time.Duration // its default limits
	startKey, stopKey string        // where they are set
	mend              string        // what makes them agree; "": setting them
	remote            bool          // clients are on other machines, and learn of a stop by asking
}

var platforms = map[Platform]platform{
	Systemd: {
		start: 90 * time.Second, stop: 90 * time.Second, startKey: "TimeoutStartSec", stopKey: "TimeoutStopSec",
		mend: "; gapless unit prints a unit whose limits agree",
	},
	Kubernetes: {
		start: 600 * time.Second, stop: 30 * time.Second, startKey: "progressDeadlineSeconds", stopKey: "terminationGracePeriodSeconds",
		remote: true,
	},
}

// lameDuck is what Kubernetes is commonly given to take a pod out of its load balancers.
const lameDuck = 5 * time.Second

// Warnings returns what contradicts each other when p runs gapless with these settings; each is one line that names the
// mend. grace is how long p was told to wait for a stop, 0: its default.
func Warnings(p Platform, s Settings, grace time.Duration) []string {
	var all []string
	warn := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	about := platforms[p]

	given := fmt.Sprintf("%s is %s", about.stopKey, Text(grace))
	if grace == 0 {
		grace, given = about.stop, fmt.Sprintf("%s is %s by default", about.stopKey, Text(about.stop))
	}
	switch limit, ok := s.StopLimit(); {
	case !ok:
		warn("--drain-timeout 0 waits for ever, and %s, after which all is killed: give --drain-timeout a limit, or set %s to what you would wait", given, about.stopKey)
	case limit > grace:
		warn("a stop may take %s (%s), and %s: set it to %d or more, or shorten --drain-timeout%s",
			Text(limit), s.stopSum(), given, int(limit.Round(time.Second)/time.Second), about.mend)
	}
	switch limit, ok := s.StartLimit(); {
	case !ok && s.StartTimeout == 0:
		warn("--start-timeout 0 waits for ever, and %s is %s by default: give --start-timeout a limit", about.startKey, Text(about.start))
	case !ok:
		warn("--before-start has no limit, and %s is %s by default: set --before-start-timeout", about.startKey, Text(about.start))
	case limit > about.start:
		warn("a start may take %s, and %s is %s by default: set it to %d or more, or shorten --start-timeout and --before-start-timeout%s",
			Text(limit), about.startKey, Text(about.start), int(limit.Round(time.Second)/time.Second), about.mend)
	}
	if s.DrainTimeout > 0 && s.CloseSpread > s.DrainTimeout {
		warn("--close-spread %s is longer than --drain-timeout %s: what it spreads over is cut short", Text(s.CloseSpread), Text(s.DrainTimeout))
	}
	if !about.remote {
		return all
	}
	if s.LameDuck == 0 {
		warn("--lame-duck is 0, and connections still come for a moment after a pod was told to stop: set --lame-duck %s", Text(lameDuck))
	}
	if s.Health == "" {
		warn("--health is not set, so a readiness probe has nothing to ask: set --health :9000, and let the probes ask /readyz and /livez there")
	}
	for _, addr := range s.Listen {
		if loopback(addr) {
			warn("%s cannot be reached from outside the container: listen at 0.0.0.0 or [::], as with --host 0.0.0.0", addr)
		}
	}
	if s.Health != "" && loopback(s.Health) {
		warn("--health %s cannot be reached by the kubelet: write --health :PORT", s.Health)
	}
	return all
}

func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}
