package verify

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"gapless/internal/load"
)

// The verdicts of a report, which are the exit statuses of the verb.
const (
	Passed     = 0
	Failed     = 1
	Unmeasured = 2
)

// Limits say what a run may lose and still pass.
type Limits struct {
	Drops    int     // requests
	Closed   int     // idle connections closed by the server; negative: any number
	P99Ratio float64 // of the worst act's p99 to that of steady state; 0: any
}

// Judge sets the verdict. A request that was lost counts also when the generator was late: it does not decide over what
// the server did with it. Everything else is only believed when the load was the one that was asked for.
func (r *Report) Judge(l Limits) {
	r.Status, r.Reasons = Passed, []string{}
	fail := func(format string, args ...any) {
		r.Status = Failed
		r.Reasons = append(r.Reasons, fmt.Sprintf(format, args...))
	}
	for _, a := range r.Acts {
		if !a.OK {
			fail("%s: %s", a.title(), a.Reason)
		}
	}
	if r.Drops > l.Drops {
		fail("%s: %s", count(r.Drops, "request was dropped", "requests were dropped"), r.classes())
	}
	if l.Closed >= 0 && r.ClosedIdle > l.Closed {
		fail("%s by the server, and %d may be", count(r.ClosedIdle, "idle connection was closed", "idle connections were closed"), l.Closed)
	}
	switch {
	case r.OK+r.Drops == 0:
		r.Status = Unmeasured
		r.Reasons = append(r.Reasons, "nothing was sent")
	case r.Generator.Fault != "":
		if r.Status == Passed {
			r.Status = Unmeasured
		}
		r.Reasons = append(r.Reasons, r.Generator.Fault)
	case l.P99Ratio > 0 && r.P99Ratio == 0:
		if r.Status == Passed {
			r.Status = Unmeasured
		}
		r.Reasons = append(r.Reasons, "no p99 of both steady state and an upgrade is known to compare")
	case l.P99Ratio > 0 && r.P99Ratio > l.P99Ratio:
		fail("p99 around the worst deploy is %.1f times that of steady state (%s and %s), and %g times are allowed",
			r.P99Ratio, ms(r.Worst.P99), ms(r.Steady.P99), l.P99Ratio)
	}
}

// classes lists the drops: "reset 2, timeout 1"; "none".
func (r *Report) classes() string {
	var parts []string
	for _, c := range load.Classes() {
		if n := r.ByClass[string(c)]; n > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", c, n))
		}
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

// title names an act among others.
func (a *ActReport) title() string { return fmt.Sprintf("%s %d", a.Name, a.Number) }

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// ms writes a latency for people.
func ms(s seconds) string {
	switch d := s.duration(); {
	case d >= 10*time.Second:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d >= time.Second:
		return fmt.Sprintf("%.2f s", d.Seconds())
	case d >= 100*time.Millisecond:
		return fmt.Sprintf("%.0f ms", d.Seconds()*1000)
	}
	return fmt.Sprintf("%.1f ms", float64(s)*1000)
}

func itoa(n int) string { return strconv.Itoa(n) }

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// request is a stream's request for people.
func (s *Stream) request() string {
	if s.Kind == load.WebSocket {
		return "ping on " + s.Path
	}
	return s.Method + " " + s.Path
}
