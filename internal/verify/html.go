package verify

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"
	"time"
)

//go:embed page.html
var pageText string

// The chart, in the units of its own coordinates.
const (
	chartWidth  = 1000.0
	chartHeight = 240.0
	chartLeft   = 60.0
	chartTop    = 24.0 // above the plot, for the names of the acts
	lossHeight  = 28.0 // below the plot, for what was lost
	chartBottom = 22.0 // for the times
)

type page struct {
	*Report
	Verdict, Classes            string
	Hints                       []string
	Date                        string
	SteadyP99, WorstP99, LagP99 string
	LossFloor, TimeLine         float64
	View                        string // of the SVG
	Plot                        box
	Loss                        box
	Grid                        []grid
	Times                       []grid
	Acts                        []actMark
	MaxArea, P99, P50           string
	DropMarks                   []lossMark
	Closes                      []lossMark
	Hover                       []hover
	Rows                        []pageRow
	Clients                     []pageRow
}

type (
	box  struct{ X, Y, W, H float64 }
	grid struct {
		At   float64
		Text string
	}
	actMark struct {
		box
		Number int
		Text   string
		Failed bool
		Fault  bool
	}
	lossMark struct {
		box
		Text string
	}
	hover struct {
		box
		Text string
	}
	pageRow struct {
		Name   string
		Cells  []string
		Lost   int
		Closed int
		Last   string
		Failed bool
	}
)

// WriteHTML writes the report as one page that needs nothing else: no network, no scripts. It follows the reader's
// choice of light or dark.
func (r *Report) WriteHTML(out io.Writer) error {
	t, err := template.New("page").Funcs(template.FuncMap{"f": func(v float64) string { return fmt.Sprintf("%.1f", v) }}).Parse(pageText)
	if err != nil {
		return err
	}
	return t.Execute(out, r.page())
}

func (r *Report) page() page {
	p := page{
		Report: r, Verdict: r.verdict(), Hints: r.hints(), Classes: r.classes(), Date: r.Started.UTC().Format(time.RFC1123),
		SteadyP99: ms(r.Steady.P99), WorstP99: ms(r.Worst.P99), LagP99: ms(r.Generator.LagP99),
		LossFloor: chartTop + chartHeight + lossHeight, TimeLine: chartTop + chartHeight + lossHeight + 16,
		View: fmt.Sprintf("0 0 %g %g", chartWidth, chartTop+chartHeight+lossHeight+chartBottom),
		Plot: box{chartLeft, chartTop, chartWidth - chartLeft, chartHeight},
		Loss: box{chartLeft, chartTop + chartHeight, chartWidth - chartLeft, lossHeight},
	}
	end := float64(r.Took)
	if n := len(r.Timeline); n > 0 {
		end = float64(r.Timeline[n-1].At + r.Width)
	}
	x := func(at seconds) float64 {
		return chartLeft + (chartWidth-chartLeft)*min(1, float64(at)/max(end, 0.001))
	}
	low, high := r.span()
	y := func(s seconds) float64 {
		f := (math.Log10(max(float64(s), low)) - math.Log10(low)) / (math.Log10(high) - math.Log10(low))
		return chartTop + chartHeight*(1-min(1, f))
	}
	for v := low; v <= high*1.001; v *= 10 {
		p.Grid = append(p.Grid, grid{y(seconds(v)), axis(v)})
	}
	step := timeStep(end)
	for at := 0.0; at <= end; at += step {
		p.Times = append(p.Times, grid{x(seconds(at)), fmt.Sprintf("%g s", at)})
	}
	for _, a := range r.Acts {
		left := x(a.At)
		text := a.title() + ": " + fmt.Sprintf("%.2f s", float64(a.Took))
		if !a.OK {
			text += ", failed: " + a.Reason
		}
		p.Acts = append(p.Acts, actMark{box{left, chartTop, max(2, x(a.At+a.Took)-left), chartHeight + lossHeight}, a.Number, text, !a.OK, a.Fault})
	}
	p.curves(r, x, y)
	p.tables(r)
	return p
}

// span is the range of the latency axis: whole powers of ten that hold everything.
func (r *Report) span() (low, high float64) {
	low, high = math.Inf(1), 0
	for _, b := range r.Timeline {
		if b.Count > 0 {
			low, high = min(low, float64(b.P50)), max(high, float64(b.Max))
		}
	}
	if high == 0 {
		return 1e-4, 1
	}
	low = math.Pow(10, math.Floor(math.Log10(max(low, 1e-6))))
	high = math.Pow(10, math.Ceil(math.Log10(high)))
	return low, max(high, low*10)
}

func axis(s float64) string {
	switch {
	case s < 0.999e-3:
		return fmt.Sprintf("%.0f µs", s*1e6)
	case s < 0.999:
		return fmt.Sprintf("%.0f ms", s*1e3)
	}
	return fmt.Sprintf("%.0f s", s)
}

// timeStep leaves about ten marks on the axis.
func timeStep(end float64) float64 {
	for _, s := range []float64{0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800} {
		if end/s <= 12 {
			return s
		}
	}
	return 3600
}

// curves draws what the timeline holds. Steps without an answer interrupt the lines: nothing is made up for them.
func (p *page) curves(r *Report, x, y func(seconds) float64) {
	floor := chartTop + chartHeight
	line := func(value func(Bucket) seconds) string {
		var b strings.Builder
		pen := "M"
		for _, k := range r.Timeline {
			if k.Count == 0 {
				pen = "M"
				continue
			}
			fmt.Fprintf(&b, "%s%.1f %.1f", pen, x(k.At+r.Width/2), y(value(k)))
			pen = "L"
		}
		return b.String()
	}
	p.P50, p.P99 = line(func(b Bucket) seconds { return b.P50 }), line(func(b Bucket) seconds { return b.P99 })
	var area strings.Builder
	worst := 1
	for _, k := range r.Timeline {
		if k.Count > 0 {
			fmt.Fprintf(&area, "M%.1f %.1fV%.1fH%.1fV%.1fZ", x(k.At), floor, y(k.Max), x(k.At+r.Width), floor)
		}
		worst = max(worst, k.Drops)
	}
	p.MaxArea = area.String()
	for _, k := range r.Timeline {
		left, width := x(k.At), max(2, x(k.At+r.Width)-x(k.At))
		if k.Drops > 0 {
			h := max(6, lossHeight*math.Sqrt(float64(k.Drops)/float64(worst)))
			p.DropMarks = append(p.DropMarks, lossMark{box{left, floor + lossHeight - h, width, h}, fmt.Sprintf("%d dropped at %.2f s", k.Drops, float64(k.At))})
		}
		if k.Closed > 0 {
			p.Closes = append(p.Closes, lossMark{box{left, floor, width, 4}, fmt.Sprintf("%d idle connections closed at %.2f s", k.Closed, float64(k.At))})
		}
		if k.Count+k.Drops+k.Closed > 0 {
			p.Hover = append(p.Hover, hover{box{left, chartTop, max(0.5, x(k.At+r.Width)-left), chartHeight + lossHeight}, fmt.Sprintf(
				"%.2f s: %d answers, p50 %s, p99 %s, max %s; %d dropped, %d idle connections closed",
				float64(k.At), k.Count, ms(k.P50), ms(k.P99), ms(k.Max), k.Drops, k.Closed)})
		}
	}
}

func (p *page) tables(r *Report) {
	lat := func(l Latency) []string {
		if l.Count == 0 {
			return []string{"–", "–", "–", "–"}
		}
		return []string{ms(l.P50), ms(l.P99), ms(l.P999), ms(l.Max)}
	}
	p.Rows = append(p.Rows, pageRow{Name: "steady state", Cells: lat(r.Steady), Lost: r.steadyDrops(), Closed: r.steadyClosed()})
	for _, a := range r.Acts {
		row := pageRow{Name: a.title(), Cells: lat(a.Latency), Lost: a.Drops, Closed: a.Closed, Failed: !a.OK}
		switch {
		case !a.OK:
			row.Last = a.Reason
		case a.Fault:
			row.Last = a.Note
		case a.FirstSeen:
			row.Last = ms(a.First)
		default:
			row.Last = ms(a.First) + " (deployed)"
		}
		p.Rows = append(p.Rows, row)
	}
	for _, s := range r.Streams {
		p.Clients = append(p.Clients, pageRow{Name: s.label(), Cells: lat(s.Latency), Lost: s.Drops, Closed: s.Closed, Last: itoa(s.OK)})
	}
}
