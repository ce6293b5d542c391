package verify

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// shownFailures is how many lost requests the table lists.
const shownFailures = 10

// WriteText writes the report as a table for people.
func (r *Report) WriteText(out io.Writer) error {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(w, strings.Join(cells, "\t")) }
	row("server", r.Target)
	if r.Deploy != "" {
		row("deployed by", r.Deploy)
	}
	if r.Requests > 0 {
		r.writeTables(&b, w)
	}
	_ = w.Flush() // into a strings.Builder, which takes everything
	r.writeFailures(&b)
	fmt.Fprintf(&b, "\n%s\n", r.verdict())
	for _, line := range append(r.Reasons, r.hints()...) {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	_, err := io.WriteString(out, trimLines(b.String()))
	return err
}

// writeTables writes the figures.
func (r *Report) writeTables(b *strings.Builder, w *tabwriter.Writer) {
	row := func(cells ...string) { fmt.Fprintln(w, strings.Join(cells, "\t")) }
	row("requests", fmt.Sprintf("%d in %.1f s, %d answered", r.Requests, r.Took, r.OK))
	row("dropped", fmt.Sprintf("%d (%s)", r.Drops, r.classes()))
	if r.Own > 0 || r.OwnClosed > 0 {
		row("killed", fmt.Sprintf("%d requests in flight and %d idle connections of workers that were killed on purpose", r.Own, r.OwnClosed))
	}
	row("connections", fmt.Sprintf("%d opened; the server closed %d that were idle, and %d with notice", r.Connects, r.ClosedIdle, r.ClosedTold))
	row("generator", fmt.Sprintf("late by p99 %s, max %s; %d requests found no time", ms(r.Generator.LagP99), ms(r.Generator.LagMax), r.Unsent))
	_ = w.Flush()

	b.WriteString("\n")
	row("", "p50", "p99", "p99.9", "max", "dropped", "closed idle", "new generation after")
	lat := func(l Latency) []string {
		if l.Count == 0 {
			return []string{"-", "-", "-", "-"}
		}
		return []string{ms(l.P50), ms(l.P99), ms(l.P999), ms(l.Max)}
	}
	row(append(append([]string{"steady state"}, lat(r.Steady)...), itoa(r.steadyDrops()), itoa(r.steadyClosed()), "")...)
	for _, a := range r.Acts {
		after := ""
		switch {
		case !a.OK:
			after = "FAILED"
		case a.Fault:
		case a.FirstSeen:
			after = ms(a.First)
		default:
			after = ms(a.First) + " (deployed)"
		}
		row(append(append([]string{a.title()}, lat(a.Latency)...), itoa(a.Drops), itoa(a.Closed), after)...)
	}
	_ = w.Flush()

	b.WriteString("\n")
	row("clients", "p50", "p99", "p99.9", "max", "dropped", "closed idle", "answered")
	for _, s := range r.Streams {
		row(append(append([]string{s.label()}, lat(s.Latency)...), itoa(s.Drops), itoa(s.Closed), itoa(s.OK))...)
	}
	_ = w.Flush()
}

// label names a stream with what it asks for.
func (s *StreamReport) label() string {
	if strings.Contains(s.Name, s.Request) {
		return s.Name
	}
	return s.Name + " (" + s.Request + ")"
}

// hints are what a reader of the verdict should know beside it. That nothing was dropped by a server which closes idle
// connections may be owed to clients that stand right beside it.
func (r *Report) hints() []string {
	if r.Status == Passed && r.ClosedIdle > 0 && r.RTT == 0 {
		return []string{fmt.Sprintf("but the server closed %s without a word: clients further away lose requests that way, as --rtt 20ms shows, and --max-closed 0 does not let it pass",
			count(r.ClosedIdle, "idle connection", "idle connections"))}
	}
	return nil
}

func (r *Report) writeFailures(b *strings.Builder) {
	if len(r.Failures) == 0 {
		return
	}
	fmt.Fprintln(b)
	for i, f := range r.Failures {
		if i == shownFailures {
			fmt.Fprintf(b, "  and %d more\n", r.Drops+r.Own-i)
			return
		}
		own := ""
		if f.Own {
			own = ", in the hands of the killed worker"
		}
		fmt.Fprintf(b, "  %.2f s  %s  %s, %s on its connection before%s: %s\n", f.Seen, f.Class, f.Stream, count(f.Served, "answer", "answers"), own, f.Reason)
	}
}

// steadyDrops are those that belong to no act.
func (r *Report) steadyDrops() int {
	n := r.Drops
	for _, a := range r.Acts {
		n -= a.Drops
	}
	return n
}

func (r *Report) steadyClosed() int {
	n := r.ClosedIdle
	for _, a := range r.Acts {
		n -= a.Closed
	}
	return n
}

// verdict is one line for people.
func (r *Report) verdict() string {
	switch r.Status {
	case Passed:
		return fmt.Sprintf("PASSED: %s dropped over %s", count(r.Drops, "request", "requests"), r.actsText())
	case Failed:
		return "FAILED"
	}
	return "NOT MEASURED"
}

// actsText says what was done: "5 upgrades and kill-worker".
func (r *Report) actsText() string {
	upgrades, name := 0, "upgrade"
	var faults []string
	for _, a := range r.Acts {
		if a.Fault {
			faults = append(faults, a.Name)
			continue
		}
		upgrades++
		name = a.Name
	}
	parts := faults
	if upgrades > 0 || len(faults) == 0 {
		parts = append([]string{count(upgrades, name, name+"s")}, faults...)
	}
	return strings.Join(parts, ", ")
}

// trimLines drops the blanks that the table leaves at the ends of lines.
func trimLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " ")
	}
	return strings.Join(lines, "\n")
}
