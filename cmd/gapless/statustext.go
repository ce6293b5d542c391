package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"gapless/internal/control"
)

// statusText puts a status into words for people.
func statusText(st control.Status, now time.Time) string {
	var b strings.Builder
	fmt.Fprintln(&b, printable(st.Headline()))
	if st.DegradedReason != "" {
		fmt.Fprintf(&b, "degraded: %s\n", printable(st.DegradedReason))
	}
	for _, warning := range st.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", printable(warning))
	}
	head := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, a := range st.Addresses {
		fmt.Fprintf(head, "listens\t%s\t%s\t%s%s\n", printable(a.URL), printable(a.Name), a.Accept, because(a.Reason))
	}
	if p := st.Preview; p != nil {
		until := ""
		if p.ForStage {
			until = ", until it is promoted or aborted"
		}
		fmt.Fprintf(head, "preview\t%s\t%s\tgeneration %d%s\n", printable(p.URL), printable(p.Address), p.Generation, until)
	}
	fmt.Fprintf(head, "workers\t%d wanted\n", st.Workers)
	if st.MemoryBytes > 0 {
		limit := ""
		if st.MemoryLimit > 0 {
			limit = " of " + size(st.MemoryLimit)
		}
		fmt.Fprintf(head, "memory\t%s%s\n", size(st.MemoryBytes), limit)
	}
	if staged := st.Staged; staged != nil {
		fmt.Fprintf(head, "%s\t%s\n", staged.State, stagedText(staged, now))
	}
	if u := st.LastUpgrade; u != nil {
		fmt.Fprintf(head, "upgrade\t%s\n", lastUpgrade(u, now))
	}
	_ = head.Flush() // a Builder takes everything
	if u := st.LastUpgrade; u != nil && !u.OK {
		for _, l := range u.Tail {
			fmt.Fprintf(&b, "  | %s\n", printable(l))
		}
	}
	for _, g := range st.Generations {
		b.WriteByte('\n')
		generationText(&b, g, now)
	}
	return trimLines(b.String())
}

// stagedText says where a generation stands that is not in charge, and what happens next.
func stagedText(s *control.Staged, now time.Time) string {
	text := fmt.Sprintf("generation %d gets %d %% of new connections", s.Generation, s.Percent)
	if s.Next != "" {
		text += "; next, " + printable(s.Next)
	}
	if !s.Until.IsZero() {
		text += " in " + age(max(0, s.Until.Sub(now)))
	}
	return text
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + printable(reason)
}

func lastUpgrade(u *control.LastUpgrade, now time.Time) string {
	ago := ""
	if !u.At.IsZero() {
		ago = ", " + age(now.Sub(u.At)) + " ago"
	}
	if u.OK {
		return fmt.Sprintf("generation %d took charge after %s%s", u.Generation, took(u.TookSeconds), ago)
	}
	return fmt.Sprintf("generation %d was aborted after %s%s%s", u.Generation, took(u.TookSeconds), ago, because(u.Reason))
}

func generationText(b *strings.Builder, g control.Generation, now time.Time) {
	fmt.Fprintf(b, "generation %d", g.Generation)
	if g.Revision > 0 {
		fmt.Fprintf(b, ", revision %d", g.Revision)
	}
	fmt.Fprintf(b, ": %s, %s old", g.State, age(seconds(g.AgeSeconds)))
	if g.MasterPID > 0 {
		fmt.Fprintf(b, ", master %d", g.MasterPID)
	}
	b.WriteByte('\n')
	if g.WhyAlive != "" {
		fmt.Fprintf(b, "  still here  %s\n", printable(g.WhyAlive))
	}
	if g.ReleaseDir != "" {
		fmt.Fprintf(b, "  release     %s\n", printable(g.ReleaseDir))
	}
	command := "the built-in app"
	if len(g.Command) > 0 {
		command = strings.Join(g.Command, " ")
	}
	fmt.Fprintf(b, "  command     %s\n", printable(command))
	if g.Binary != "" {
		fmt.Fprintf(b, "  gapless     %s\n", strings.TrimSpace(printable(g.Binary+" "+g.Version)))
	}
	if len(g.Workers) == 0 {
		return
	}
	workersTable(b, g, now)
}

// workersTable leaves out the columns that say nothing.
func workersTable(b *strings.Builder, g control.Generation, now time.Time) {
	has := func(is func(control.Worker) bool) bool { return slices.ContainsFunc(g.Workers, is) }
	columns := []struct {
		title string
		show  bool
		cell  func(control.Worker) string
	}{
		{"WORKER", true, func(w control.Worker) string { return cmp.Or(printable(w.Role), strconv.Itoa(w.Slot)) }},
		{"PID", true, func(w control.Worker) string { return strconv.Itoa(w.PID) }},
		{"STATE", true, func(w control.Worker) string { return w.State }},
		{"FOR", has(func(w control.Worker) bool { return !w.Since.IsZero() }), func(w control.Worker) string { return since(w.Since, now) }},
		{"AGE", true, func(w control.Worker) string { return age(seconds(w.AgeSeconds)) }},
		{"REV", has(func(w control.Worker) bool { return w.Revision != g.Revision }), func(w control.Worker) string { return strconv.Itoa(w.Revision) }},
		{"RESTARTS", true, func(w control.Worker) string { return strconv.Itoa(w.Restarts) }},
		{"MEMORY", true, func(w control.Worker) string { return size(cmp.Or(w.MemoryPSS, w.MemoryRSS)) }},
		{"OPEN", true, func(w control.Worker) string { return strconv.Itoa(w.Established) }},
		{"QUEUED", true, func(w control.Worker) string { return strconv.Itoa(w.Queued) }},
		{"IN FLIGHT", has(func(w control.Worker) bool { return w.InFlight != nil }), func(w control.Worker) string { return count(w.InFlight) }},
		{"OLDEST", has(func(w control.Worker) bool { return w.Oldest != nil }), func(w control.Worker) string { return oldest(w.Oldest) }},
		{"HANDED", has(func(w control.Worker) bool { return w.Handed != nil }), func(w control.Worker) string { return count(w.Handed) }},
		{"ADAPTER", has(func(w control.Worker) bool { return w.Adapter != "" || w.NoAdapter != "" }), adapterOf},
		{"LANES", has(func(w control.Worker) bool { return len(w.Lanes) > 0 }), func(w control.Worker) string { return lanes(w.Lanes) }},
		{"SAYS", has(func(w control.Worker) bool { return w.Says != "" }), func(w control.Worker) string { return cmp.Or(printable(w.Says), "-") }},
		{"WHY", has(func(w control.Worker) bool { return w.Reason != "" }), func(w control.Worker) string { return printable(w.Reason) }},
	}
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	row := func(cell func(i int) string) {
		fmt.Fprint(t, "  ")
		for i, c := range columns {
			if c.show {
				fmt.Fprint(t, cell(i), "\t")
			}
		}
		fmt.Fprintln(t)
	}
	row(func(i int) string { return columns[i].title })
	for _, w := range g.Workers {
		row(func(i int) string { return columns[i].cell(w) })
	}
	_ = t.Flush() // a Builder takes everything
}

func count(n *int) string {
	if n == nil {
		return "-"
	}
	return strconv.Itoa(*n)
}

// adapterOf is the adapter in force; why there is none where one could be expected stands in the log and the JSON form.
func adapterOf(w control.Worker) string { return cmp.Or(printable(w.Adapter), "none") }

func oldest(s *float64) string {
	if s == nil {
		return "-"
	}
	return age(seconds(*s))
}

func lanes(all []control.Lane) string {
	var texts []string
	for _, l := range all {
		text := fmt.Sprintf("%s#%d", printable(l.Address), l.Index)
		if l.Weight == 0 {
			text += "(off)"
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, " ")
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func since(at, now time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return age(now.Sub(at))
}

// age is a duration in its two greatest units.
func age(d time.Duration) string {
	day := 24 * time.Hour
	switch {
	case d < time.Second:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%02dh", d/day, d%day/time.Hour)
}

// size is a number of bytes for people.
func size(n int64) string {
	switch {
	case n <= 0:
		return "-"
	case n < 1<<20:
		return fmt.Sprintf("%d KiB", (n+1023)>>10)
	case n < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
}

// trimLines removes the blanks that columns leave at the ends of lines.
func trimLines(text string) string {
	var b strings.Builder
	for l := range strings.Lines(text) {
		b.WriteString(strings.TrimRight(l, " \n"))
		b.WriteByte('\n')
	}
	return b.String()
}
