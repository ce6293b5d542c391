package workerpool

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Readiness is how a worker counts as ready.
type Readiness struct {
	Mode  ReadyMode
	Line  *regexp.Regexp // ReadyLog: a line of its output that matches
	Delay time.Duration  // ReadyDelay: how long it must have lived
	Path  string         // ReadyHTTP: what is asked for; a status below 400 says yes
}

// ReadyMode is the kind of evidence.
type ReadyMode int

// The modes of --ready.
const (
	ReadyAuto   ReadyMode = iota // READY=1, a word over the channel, or the kernel's evidence
	ReadyNotify                  // READY=1 or a word over the channel only
	ReadyLog
	ReadyDelay
	ReadyHTTP
)

// ParseReadiness reads the value of --ready.
func ParseReadiness(s string) (Readiness, error) {
	kind, arg, hasArg := strings.Cut(s, "=")
	switch {
	case kind == "auto" && !hasArg:
		return Readiness{Mode: ReadyAuto}, nil
	case kind == "notify" && !hasArg:
		return Readiness{Mode: ReadyNotify}, nil
	case kind == "log" && arg != "":
		re, err := regexp.Compile(arg)
		if err != nil {
			return Readiness{}, fmt.Errorf("%q is no regular expression: %w", arg, err)
		}
		return Readiness{Mode: ReadyLog, Line: re}, nil
	case kind == "delay" && hasArg:
		d, err := time.ParseDuration(arg)
		if err != nil || d < 0 {
			return Readiness{}, fmt.Errorf("%q is no duration; write, for example, delay=500ms", arg)
		}
		return Readiness{Mode: ReadyDelay, Delay: d}, nil
	case kind == "http" && strings.HasPrefix(arg, "/"):
		return Readiness{Mode: ReadyHTTP, Path: arg}, nil
	}
	return Readiness{}, fmt.Errorf("%q is none of auto, notify, log=REGEX, delay=DURATION, http=/PATH", s)
}

// hint completes the report of a worker that did not become ready in time: what would have counted, and what to do.
func (r Readiness) hint() string {
	switch r.Mode {
	case ReadyNotify:
		return "it has not sent READY=1 to NOTIFY_SOCKET; if it never does, leave --ready at auto"
	case ReadyLog:
		return fmt.Sprintf("no line of its output matched %q", r.Line)
	case ReadyDelay:
		return fmt.Sprintf("--ready delay=%s is longer than --start-timeout", r.Delay)
	case ReadyHTTP:
		return fmt.Sprintf("GET %s was not answered with a status below 400", r.Path)
	case ReadyAuto:
	}
	return "it neither sent READY=1 nor was seen to wait for connections on an inherited socket; does it listen on {fd} " +
		"(LISTEN_FDS)? If it does, say with --ready how to tell"
}

// probeEvery is how often the kernel is asked about a worker of the given age: often at first, when a fast server
// becomes ready, and less so for one that takes seconds.
func probeEvery(age time.Duration) time.Duration {
	switch {
	case age < 200*time.Millisecond:
		return 3 * time.Millisecond
	case age < 2*time.Second:
		return 15 * time.Millisecond
	default:
		return 50 * time.Millisecond
	}
}
