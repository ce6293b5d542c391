package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"

	"gapless/internal/control"
	"gapless/internal/logging"
)

// progress shows what happens, one line for each thing; on a terminal, a count rewrites its line.
type progress struct {
	out      io.Writer
	terminal bool
	colour   bool
	last     string // the line that stands there
	open     string // the phase whose line may be rewritten
}

func newProgress(out io.Writer) *progress {
	p := &progress{out: out, terminal: isTerminal(out)}
	p.colour = p.terminal && os.Getenv("NO_COLOR") == ""
	return p
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && os.Getenv("TERM") != "dumb" && logging.Terminal(f)
}

// show shows an event, if it is one for people.
func (p *progress) show(e control.Event) {
	text, counts := eventText(e)
	if text == "" || text == p.last {
		return
	}
	p.last = text
	if p.colour && (e.State == "aborted" || e.State == "failed") {
		text = "\x1b[31m" + text + "\x1b[0m"
	}
	phase := e.Kind + " " + e.State
	switch {
	case !p.terminal:
		fmt.Fprintln(p.out, text)
	case counts && p.open == phase:
		fmt.Fprint(p.out, "\r\x1b[K"+text)
	default:
		p.end()
		fmt.Fprint(p.out, text)
		if counts {
			p.open = phase
			return
		}
		fmt.Fprintln(p.out)
	}
}

// end ends the line that is being rewritten.
func (p *progress) end() {
	if p.open != "" {
		fmt.Fprintln(p.out)
		p.open = ""
	}
}

// tail shows the last lines of a worker.
func (p *progress) tail(lines []string) {
	if len(lines) == 0 {
		return
	}
	fmt.Fprintln(p.out, "its last lines:")
	for _, l := range lines {
		fmt.Fprintf(p.out, "  | %s\n", printable(l))
	}
}

// eventText puts an event into words; "" if a person who waits for an outcome does not want to know it. counts says that
// the next such event brings only another number.
func eventText(e control.Event) (text string, counts bool) {
	switch e.Kind {
	case control.KindLog:
		return printable(e.Text), false
	case control.KindUpgrade, control.KindReload, control.KindScale, control.KindStop:
	default:
		return "", false // workers one by one are for `gapless status --watch` and /v1/events
	}
	var b strings.Builder
	b.WriteString(phaseText(e))
	counts = e.Total > 0
	switch {
	case e.State == "done": // that is the answer
		return "", false
	case e.State == "aborted":
		return e.Kind + " aborted", false // why is in the error that follows
	case e.Percent != nil && e.State == "shift":
		fmt.Fprintf(&b, " %d %% of new connections", *e.Percent)
	case counts && e.State == "drain":
		fmt.Fprintf(&b, ", %d left", e.Total-e.Ready)
		if e.Oldest != nil {
			fmt.Fprintf(&b, ", oldest request %s", age(seconds(*e.Oldest)))
		}
	case counts:
		fmt.Fprintf(&b, " %d/%d", e.Ready, e.Total)
	case e.Text != "":
		b.WriteString(" (" + printable(e.Text) + ")")
	}
	if e.Reason != "" {
		b.WriteString(": " + printable(e.Reason))
	}
	return b.String(), counts
}

func phaseText(e control.Event) string {
	generation := ""
	if e.Generation > 0 {
		generation = fmt.Sprintf(" generation %d", e.Generation)
	}
	switch e.State {
	case "steps":
		return "previous steps"
	case "starting":
		if e.Total == 0 && generation != "" {
			return "starting" + generation
		}
		return "workers ready"
	case "ready":
		return "workers ready"
	case "commit":
		return "commit: new connections go to" + cmp.Or(generation, " the new generation")
	case "drain":
		return "draining"
	case "staged":
		return "staged" + generation
	case "shift":
		return "shift:" + generation + " gets"
	case "verify":
		return "verifying" + generation
	case "window":
		return "window:" + generation + " gets all new connections, and the old one is kept"
	case "":
		return e.Kind
	}
	return e.State
}

// printable returns text without what could command a terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, text)
}
