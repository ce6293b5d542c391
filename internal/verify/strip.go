package verify

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"
)

// Show shows progress to a person: on a terminal one line that is rewritten, with the latency of the last seconds and a
// mark where something was done; elsewhere a line for each act. Its Progress is for Plan.Progress.
type Show struct {
	Out      io.Writer
	Terminal bool
	Colour   bool
	Width    func() int // columns of the terminal

	open bool // a line is being rewritten
}

const (
	wipe   = "\r\x1b[K"
	red    = "\x1b[31m"
	cyan   = "\x1b[36m"
	faint  = "\x1b[2m"
	normal = "\x1b[0m"
)

// Progress shows what happens.
func (s *Show) Progress(p Progress) {
	if p.Live != nil {
		if s.Terminal {
			fmt.Fprint(s.Out, wipe+s.strip(p.Live, s.Width()-1))
			s.open = true
		}
		return
	}
	s.End()
	text := fmt.Sprintf("%6.2f s  %s %d/%d", p.At.Seconds(), p.Act, p.Number, p.Total)
	switch {
	case p.Ended && p.Failed:
		text += " " + s.in(red, "failed: "+p.Outcome)
	case p.Ended && p.Outcome != "":
		text += " done: " + p.Outcome
	case p.Ended:
		text += " done"
	}
	fmt.Fprintln(s.Out, text)
}

// End wipes the line that is being rewritten.
func (s *Show) End() {
	if s.open {
		fmt.Fprint(s.Out, wipe)
		s.open = false
	}
}

func (s *Show) in(colour, text string) string {
	if !s.Colour {
		return text
	}
	return colour + text + normal
}

// levels are the heights of a column.
var levels = []rune("▁▂▃▄▅▆▇█")

// strip is one line of at most width columns.
func (s *Show) strip(l *Live, width int) string {
	head := fmt.Sprintf("%5.1f s  %d answered", l.At.Seconds(), l.Answered)
	drops := fmt.Sprintf("%d dropped", l.Drops)
	top := time.Duration(0)
	for _, c := range l.Columns {
		top = max(top, c.Max)
	}
	tail := fmt.Sprintf(" max %s", ms(secs(top)))
	room := width - len(head) - len(drops) - len(tail) - 4
	if l.Drops > 0 {
		drops = s.in(red, drops)
	}
	if room < 10 {
		return head + ", " + drops
	}
	var b strings.Builder
	for _, c := range l.Columns[max(0, len(l.Columns)-room):] {
		mark := " "
		if c.Max > 0 {
			mark = string(level(c.Max))
		}
		switch {
		case c.Drops > 0:
			mark = s.in(red, "×")
		case c.Act:
			mark = s.in(cyan, "│")
		}
		b.WriteString(mark)
	}
	return head + ", " + drops + "  " + b.String() + s.in(faint, tail)
}

// level is the height of a latency on a logarithmic scale: 1 ms and less at the bottom, a second and more at the top.
func level(d time.Duration) rune {
	f := math.Log10(float64(d)/float64(time.Millisecond)) / 3
	i := int(f * float64(len(levels)))
	return levels[max(0, min(len(levels)-1, i))]
}
