package load

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Class says how a request was lost.
type Class string

// The classes of drops.
const (
	Refused Class = "refused" // no connection could be made
	Reset   Class = "reset"   // the connection was reset before the response began
	EOF     Class = "eof"     // the connection was closed before the response began
	Cut     Class = "cut"     // the response began and did not end
	Timeout Class = "timeout" // no connection, or no response, in time
	Status  Class = "status"  // a complete response with the wrong status
	Body    Class = "body"    // a complete response with the wrong body, or to another request

	canceled Class = "canceled" // the run was ended: nobody's fault
	local    Class = "local"    // this machine could not make the connection
	crossed  Class = "crossed"  // a ping that met the server's close frame: the protocol leaves it unanswered
)

// Classes lists all classes of drops in the order of reports.
func Classes() []Class { return []Class{Refused, Reset, EOF, Cut, Timeout, Status, Body} }

// Drops counts lost requests by class.
type Drops map[Class]int

// Total is the number of lost requests.
func (d Drops) Total() int {
	n := 0
	for _, c := range d {
		n += c
	}
	return n
}

// String lists what is not zero: "reset 2, timeout 1"; "none".
func (d Drops) String() string {
	var parts []string
	for _, c := range Classes() {
		if d[c] > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", c, d[c]))
		}
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

// Quantiles of a set of durations: the smallest value that at least that share of the set does not exceed.
type Quantiles struct {
	Count               int
	P50, P99, P999, Max time.Duration
}

// Sample is the latency of one request that was answered, at its intended time from the start of the run.
type Sample struct {
	At      time.Duration
	Latency time.Duration
}

// Failure describes one lost request.
type Failure struct {
	Stream string
	ID     string // as in its X-Request-Id
	Class  Class
	Err    error
	At     time.Duration // when it was intended, from the start of the run
	Took   time.Duration // from then until the loss was seen, without what we ourselves were late
	Served int           // responses that its connection had given before
}

// Generation is one value of the X-Gapless-Generation header.
type Generation struct {
	Name        string
	Responses   int
	First, Last time.Duration // when its first and last responses were seen, from the start of the run
}

// Report is what a run found. Requests = OK + Drops.Total() + Canceled + Local + Crossed.
type Report struct {
	Target     string
	Started    time.Time
	Took       time.Duration
	Intended   time.Duration // Config.Duration
	Requests   int
	OK         int
	Drops      Drops
	Canceled   int // in flight when the run was ended from outside
	Local      int // this machine ran out of ports or descriptors
	Crossed    int // pings that met the close frame of the server
	Unsent     int // sends whose time was over before their connection was free: server and generator were too slow for the rate
	Connects   int
	ClosedIdle int // connections that the server closed with nothing on the wire and without announcing it

	ClosedAnnounced int           // kept-alive connections and WebSockets whose end the server announced
	Latency         Quantiles     // of what was answered
	Lag             Quantiles     // by how much sends were late through ourselves; not part of Latency
	LagLimit        time.Duration // Config.LagLimit

	Generations []Generation // by the time of their first response
	Failures    []Failure    // the first lost requests, at most 100
	Samples     []Sample     // by time

	lag []time.Duration // until finish
}

// Fault says why the figures must not be trusted, for reasons that lie with this machine and not with the server; "" if
// they can be.
func (r *Report) Fault() string {
	switch {
	case r.Local > 0:
		return fmt.Sprintf("%d requests could not be sent for want of ports or descriptors here: use fewer new connections", r.Local)
	case r.Lag.P99 > r.LagLimit:
		return fmt.Sprintf("the generator fell behind: it acted %v late at the 99th percentile (limit %v): lower the rate", r.Lag.P99.Round(time.Microsecond), r.LagLimit)
	case r.Requests == 0:
		return "nothing was sent"
	}
	return ""
}

// Within returns the latency of what was intended in a part of the run.
func (r *Report) Within(from, to time.Duration) Quantiles {
	var d []time.Duration
	for _, s := range r.Samples {
		if s.At >= from && s.At < to {
			d = append(d, s.Latency)
		}
	}
	return QuantilesOf(d)
}

// String is a compact table.
func (r *Report) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }
	row("target", "%s, %v", r.Target, r.Took.Round(time.Millisecond))
	row("requests", "%d, ok %d", r.Requests, r.OK)
	row("dropped", "%d (%s)", r.Drops.Total(), r.Drops)
	row("connections", "%d opened, %d closed by the server while idle", r.Connects, r.ClosedIdle)
	row("latency", "p50 %s, p99 %s, p99.9 %s, max %s", ms(r.Latency.P50), ms(r.Latency.P99), ms(r.Latency.P999), ms(r.Latency.Max))
	row("generator", "late by p99 %s, max %s", ms(r.Lag.P99), ms(r.Lag.Max))
	if r.Canceled+r.Local+r.Crossed+r.Unsent > 0 {
		row("not counted", "%d canceled, %d for want of local resources, %d met by a close frame, %d never sent", r.Canceled, r.Local, r.Crossed, r.Unsent)
	}
	for _, g := range r.Generations {
		row("generation "+g.Name, "%d responses, %s to %s", g.Responses, ms(g.First), ms(g.Last))
	}
	if f := r.Fault(); f != "" {
		row("FAULT", "%s", f)
	}
	for i, f := range r.Failures {
		if i == 10 {
			row("", "and %d more", r.Drops.Total()-i)
			break
		}
		row(string(f.Class), "%s at %s after %s, %d responses before on its connection: %v", f.ID, ms(f.At), ms(f.Took), f.Served, f.Err)
	}
	w.Flush() // into a strings.Builder, which takes everything
	return strings.TrimRight(b.String(), "\n")
}

// tally is what one slot saw.
type tally struct {
	Counts      map[Class]int // "" is OK
	Connects    int
	ClosedIdle  int
	Unsent      int
	Samples     []Sample
	Failures    []Failure
	Generations map[string]*Generation
	lag         []time.Duration

	ClosedAnnounced int
}

func (t *tally) count(c Class) {
	if t.Counts == nil {
		t.Counts = map[Class]int{}
	}
	t.Counts[c]++
}

func (t *tally) generation(name string, at time.Duration) {
	if t.Generations == nil {
		t.Generations = map[string]*Generation{}
	}
	g := t.Generations[name]
	if g == nil {
		g = &Generation{Name: name, First: at, Last: at}
		t.Generations[name] = g
	}
	g.Responses++
	g.First, g.Last = min(g.First, at), max(g.Last, at)
}

func newReport(c *Config, start time.Time, took time.Duration) Report {
	return Report{
		Target: c.Address, Started: start, Took: took, Intended: c.Duration, LagLimit: c.LagLimit, Drops: Drops{},
	}
}

func (r *Report) add(t *tally) {
	for class, n := range t.Counts {
		r.Requests += n
		switch class {
		case "":
			r.OK += n
		case canceled:
			r.Canceled += n
		case local:
			r.Local += n
		case crossed:
			r.Crossed += n
		default:
			r.Drops[class] += n
		}
	}
	r.Connects += t.Connects
	r.ClosedIdle += t.ClosedIdle
	r.ClosedAnnounced += t.ClosedAnnounced
	r.Unsent += t.Unsent
	r.Samples = append(r.Samples, t.Samples...)
	r.Failures = append(r.Failures, t.Failures...)
	for _, g := range t.Generations {
		i := slices.IndexFunc(r.Generations, func(have Generation) bool { return have.Name == g.Name })
		if i < 0 {
			r.Generations = append(r.Generations, *g)
			continue
		}
		have := &r.Generations[i]
		have.Responses += g.Responses
		have.First, have.Last = min(have.First, g.First), max(have.Last, g.Last)
	}
	r.lag = append(r.lag, t.lag...)
}

// finish sorts and sums up what add has gathered.
func (r *Report) finish() {
	slices.SortFunc(r.Samples, func(a, b Sample) int { return cmp.Compare(a.At, b.At) })
	slices.SortFunc(r.Generations, func(a, b Generation) int { return cmp.Compare(a.First, b.First) })
	slices.SortFunc(r.Failures, func(a, b Failure) int { return cmp.Compare(a.At, b.At) })
	r.Failures = r.Failures[:min(len(r.Failures), maxFailures)]
	r.Latency = r.Within(0, math.MaxInt64)
	r.Lag, r.lag = QuantilesOf(r.lag), nil
}

// QuantilesOf sorts d and returns its quantiles.
func QuantilesOf(d []time.Duration) Quantiles {
	if len(d) == 0 {
		return Quantiles{}
	}
	slices.Sort(d)
	at := func(q float64) time.Duration { return d[max(int(math.Ceil(q*float64(len(d))))-1, 0)] }
	return Quantiles{Count: len(d), P50: at(0.5), P99: at(0.99), P999: at(0.999), Max: d[len(d)-1]}
}
