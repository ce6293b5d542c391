package verify

import (
	"cmp"
	"slices"
	"time"

	"gapless/internal/load"
)

// Report is what a run found. Its JSON is the answer of `gapless verify --json`: durations are in seconds, times from the
// start of the load. Requests = OK + Drops + Own + Unfinished.
type Report struct {
	Version string    `json:"version"` // of gapless
	Target  string    `json:"target"`
	Deploy  string    `json:"deploy"`
	URL     string    `json:"url"`
	Started time.Time `json:"started"`
	Took    seconds   `json:"took_seconds"` // of the load

	Status  int      `json:"status"` // the verdict: 0 passed, 1 failed, 2 nothing could be measured
	Reasons []string `json:"reasons"`

	Requests   int            `json:"requests"`
	OK         int            `json:"ok"`
	Drops      int            `json:"drops"`
	ByClass    map[string]int `json:"drops_by_class"`    // every class, also those that are zero
	Own        int            `json:"killed_in_flight"`  // of workers that were killed on purpose
	Unfinished int            `json:"unfinished"`        // in flight at the end of an interrupted run, or met by a close frame
	Unsent     int            `json:"unsent"`            // for which there was no time
	Connects   int            `json:"connections"`       // opened
	ClosedIdle int            `json:"closed_idle"`       // by the server, with nothing on the wire and without a word before
	ClosedTold int            `json:"closed_announced"`  // after Connection: close, or by a close frame
	OwnClosed  int            `json:"killed_idle"`       // idle connections of workers that were killed on purpose
	Latency    Latency        `json:"latency"`           // of the whole
	Steady     Latency        `json:"latency_steady"`    // away from all acts
	Worst      Latency        `json:"latency_worst_act"` // around the act with the greatest p99
	P99Ratio   float64        `json:"p99_ratio"`         // of Worst to Steady; 0: unknown
	Streams    []StreamReport `json:"streams"`
	Acts       []ActReport    `json:"acts"`
	Generator  Generator      `json:"generator"`
	RTT        seconds        `json:"rtt_seconds"`
	Failures   []Failure      `json:"failures"` // the first ones, at most maxFailures
	Width      seconds        `json:"timeline_step_seconds"`
	Timeline   []Bucket       `json:"timeline"`
}

// seconds is a duration in JSON.
type seconds float64

func secs(d time.Duration) seconds { return seconds(d.Seconds()) }

func (s seconds) duration() time.Duration { return time.Duration(float64(s) * float64(time.Second)) }

// Latency of a set of answers.
type Latency struct {
	Count int     `json:"count"`
	P50   seconds `json:"p50_seconds"`
	P99   seconds `json:"p99_seconds"`
	P999  seconds `json:"p999_seconds"`
	Max   seconds `json:"max_seconds"`
}

func latencyOf(d []time.Duration) Latency {
	q := load.QuantilesOf(d)
	return Latency{q.Count, secs(q.P50), secs(q.P99), secs(q.P999), secs(q.Max)}
}

// StreamReport is what one kind of client saw.
type StreamReport struct {
	Name    string  `json:"name"`
	Kind    string  `json:"kind"`
	Request string  `json:"request"`
	OK      int     `json:"ok"`
	Drops   int     `json:"drops"`
	Closed  int     `json:"closed_idle"`
	Latency Latency `json:"latency"`
}

// ActReport is what was seen around one act: from its beginning until a second after its end, or until the next begins.
type ActReport struct {
	Name       string  `json:"name"`
	Number     int     `json:"number"` // among the acts, from 1
	Fault      bool    `json:"fault"`
	At         seconds `json:"at_seconds"`
	Took       seconds `json:"took_seconds"` // until the deploy was done
	OK         bool    `json:"ok"`
	Reason     string  `json:"reason,omitempty"`
	Note       string  `json:"note,omitempty"`
	Generation string  `json:"generation,omitempty"`
	// First is the time from the beginning until a client had the first answer of the new generation, or where answers do
	// not tell their generation (FirstSeen false) until the deploy was done.
	First     seconds `json:"first_answer_seconds"`
	FirstSeen bool    `json:"first_answer_seen"`
	Drops     int     `json:"drops"`
	Own       int     `json:"killed_in_flight"`
	Closed    int     `json:"closed_idle"`
	Latency   Latency `json:"latency"`

	end time.Duration // of what is counted as around it
}

// Generator says how well the load was generated.
type Generator struct {
	LagP99   seconds `json:"lag_p99_seconds"` // by how much requests were late through itself; no part of any latency
	LagMax   seconds `json:"lag_max_seconds"`
	LagLimit seconds `json:"lag_limit_seconds"`
	Fault    string  `json:"fault,omitempty"` // why the figures prove nothing
}

// Failure is one lost request.
type Failure struct {
	At     seconds `json:"at_seconds"` // when it was meant to be sent
	Seen   seconds `json:"seen_seconds"`
	Stream string  `json:"stream"`
	ID     string  `json:"id"`
	Class  string  `json:"class"`
	Reason string  `json:"reason"`
	Served int     `json:"answers_before"` // on its connection
	Own    bool    `json:"killed"`         // in the hands of a worker that was killed on purpose
}

// Bucket is one step of the timeline, by the time at which requests were meant to be sent; drops and closes by when they were seen.
type Bucket struct {
	At     seconds `json:"at_seconds"`
	Count  int     `json:"count"`
	P50    seconds `json:"p50_seconds"`
	P99    seconds `json:"p99_seconds"`
	Max    seconds `json:"max_seconds"`
	Drops  int     `json:"drops"`
	Closed int     `json:"closed_idle"`
}

const (
	maxFailures = 100
	maxBuckets  = 300
	minBucket   = 50 * time.Millisecond
)

// report sums up. The load has ended.
func (r *runner) report(l load.Report) Report {
	p := r.plan
	rep := p.empty()
	rep.Started, rep.Took = r.start, secs(l.Took)
	// What this machine could not send is no request of the server's.
	rep.Requests, rep.OK, rep.Unfinished, rep.Unsent = l.Requests-l.Local, l.OK, l.Canceled+l.Crossed, l.Unsent
	rep.Connects, rep.ClosedTold = l.Connects, l.ClosedAnnounced
	rep.Generator = Generator{LagP99: secs(l.Lag.P99), LagMax: secs(l.Lag.Max), LagLimit: secs(p.MaxLag)}
	rep.Acts = r.actReports()
	r.drops(&rep)
	r.closes(&rep)
	r.latencies(&rep)
	r.timeline(&rep, l.Took)
	rep.Generator.Fault = p.fault(&l, &rep)
	return rep
}

// NotMeasured is the report of a run that could not begin.
func (p Plan) NotMeasured(reason string) Report {
	rep := p.empty()
	rep.Started = time.Now()
	rep.Void(reason)
	return rep
}

// Void says that a report proves nothing, whatever is in it.
func (r *Report) Void(reason string) { r.Status, r.Reasons = Unmeasured, []string{reason} }

// empty is a report without figures. Its lists are there: readers of its JSON need not look for null.
func (p *Plan) empty() Report {
	rep := Report{
		Target: p.Target, Deploy: p.Deploy, Reasons: []string{}, ByClass: map[string]int{}, Streams: []StreamReport{}, Acts: []ActReport{},
		Failures: []Failure{}, Timeline: []Bucket{}, RTT: secs(p.RTT), Generator: Generator{LagLimit: secs(p.MaxLag)},
	}
	if p.URL != nil {
		rep.URL = p.URL.Scheme + "://" + p.URL.Host
	}
	for _, c := range load.Classes() {
		rep.ByClass[string(c)] = 0
	}
	for _, s := range p.Streams {
		rep.Streams = append(rep.Streams, StreamReport{Name: s.Name, Kind: s.kind(), Request: s.request()})
	}
	return rep
}

// own tells whether an event befell a connection that a killed worker had in hand.
func (r *runner) own(e load.Event) bool {
	for _, d := range r.done {
		o := d.outcome
		if e.Port != 0 && o.Own[e.Port] && e.Connected.Before(o.OwnAt) && e.Seen.After(o.OwnAt) {
			return true
		}
	}
	return false
}

// actReports makes what does not need the load's answers.
func (r *runner) actReports() []ActReport {
	acts := make([]ActReport, len(r.done))
	for i, d := range r.done {
		a := ActReport{
			Name: d.act.Name, Number: i + 1, Fault: d.act.Fault, At: secs(d.begin), Took: secs(d.end - d.begin), OK: d.outcome.Err == nil,
			Note: d.outcome.Note, First: secs(d.end - d.begin), end: d.end + aura,
		}
		next := time.Duration(1<<63 - 1)
		if i+1 < len(r.done) {
			next = r.done[i+1].begin
		}
		a.end = min(a.end, next)
		if d.outcome.Err != nil {
			a.Reason = d.outcome.Err.Error()
		}
		if a.OK && !d.act.Fault {
			r.firstAnswer(&a, d, next)
		}
		acts[i] = a
	}
	return acts
}

// firstAnswer finds when clients saw the new generation.
func (r *runner) firstAnswer(a *ActReport, d performed, next time.Duration) {
	for _, name := range r.rec.order {
		at := r.rec.first[name]
		if at < d.begin || at >= next || d.outcome.Generation != 0 && name != itoa(d.outcome.Generation) {
			continue
		}
		a.Generation, a.First, a.FirstSeen = name, secs(at-d.begin), true
		return
	}
	if d.outcome.Generation != 0 {
		a.Generation = itoa(d.outcome.Generation)
	}
}

// actAt is the latest act that had begun at a time; nil: none.
func actAt(acts []ActReport, at time.Duration) *ActReport {
	for i := len(acts) - 1; i >= 0; i-- {
		if acts[i].At.duration() <= at {
			return &acts[i]
		}
	}
	return nil
}

func (r *runner) drops(rep *Report) {
	byStream := map[string]*StreamReport{}
	for i := range rep.Streams {
		byStream[rep.Streams[i].Name] = &rep.Streams[i]
	}
	drops := r.rec.drops
	slices.SortFunc(drops, func(a, b load.Event) int { return cmp.Compare(a.Seen.UnixNano(), b.Seen.UnixNano()) })
	for _, e := range drops {
		own := r.own(e)
		at := e.Seen.Sub(r.start)
		if e.Class == load.Timeout {
			at = e.At.Sub(r.start) // what it waited for in vain happened then
		}
		act := actAt(rep.Acts, at)
		if own {
			rep.Own++
		} else {
			rep.Drops++
			rep.ByClass[string(e.Class)]++
			byStream[e.Stream].Drops++
		}
		if act != nil && own {
			act.Own++
		} else if act != nil {
			act.Drops++
		}
		if len(rep.Failures) < maxFailures {
			rep.Failures = append(rep.Failures, Failure{
				At: secs(e.At.Sub(r.start)), Seen: secs(e.Seen.Sub(r.start)), Stream: e.Stream, ID: e.ID, Class: string(e.Class),
				Reason: errText(e.Err), Served: e.Served, Own: own,
			})
		}
	}
	for _, e := range r.rec.closes {
		if e.Kind == load.ClosedIdle && !r.own(e) {
			byStream[e.Stream].Closed++
		}
	}
}

func (r *runner) closes(rep *Report) {
	for _, e := range r.rec.closes {
		switch {
		case e.Kind != load.ClosedIdle:
		case r.own(e):
			rep.OwnClosed++
		default:
			rep.ClosedIdle++
			if act := actAt(rep.Acts, e.Seen.Sub(r.start)); act != nil {
				act.Closed++
			}
		}
	}
}

// latencies sums up how long answers took.
func (r *runner) latencies(rep *Report) {
	var all, quiet []time.Duration
	around := make([][]time.Duration, len(rep.Acts))
	streams := make([][]time.Duration, len(rep.Streams))
	for _, s := range r.rec.samples {
		streams[s.stream] = append(streams[s.stream], s.latency)
		if !r.rec.measures(s.stream) {
			continue
		}
		all = append(all, s.latency)
		// A request that was meant to be sent before an act and was answered in it has felt it.
		touched := false
		for i := range rep.Acts {
			if s.at < rep.Acts[i].end && s.at+s.latency >= rep.Acts[i].At.duration() {
				around[i] = append(around[i], s.latency)
				touched = true
			}
		}
		if !touched {
			quiet = append(quiet, s.latency)
		}
	}
	rep.Latency, rep.Steady = latencyOf(all), latencyOf(quiet)
	for i := range around {
		rep.Acts[i].Latency = latencyOf(around[i])
		if l := rep.Acts[i].Latency; l.P99 >= rep.Worst.P99 {
			rep.Worst = l
		}
	}
	if rep.Steady.P99 > 0 && rep.Worst.Count > 0 {
		rep.P99Ratio = float64(rep.Worst.P99 / rep.Steady.P99)
	}
	for i := range streams {
		rep.Streams[i].OK, rep.Streams[i].Latency = len(streams[i]), latencyOf(streams[i])
	}
}

func (r *runner) timeline(rep *Report, took time.Duration) {
	width := max(minBucket, (took/maxBuckets).Truncate(minBucket)+minBucket)
	rep.Width = secs(width)
	n := int(took/width) + 1
	rep.Timeline = make([]Bucket, n)
	within := make([][]time.Duration, n)
	bucket := func(at time.Duration) int { return max(0, min(n-1, int(at/width))) }
	for _, s := range r.rec.samples {
		if r.rec.measures(s.stream) {
			i := bucket(s.at)
			within[i] = append(within[i], s.latency)
		}
	}
	for i := range rep.Timeline {
		l := latencyOf(within[i])
		rep.Timeline[i] = Bucket{At: secs(time.Duration(i) * width), Count: l.Count, P50: l.P50, P99: l.P99, Max: l.Max}
	}
	for _, e := range r.rec.drops {
		if !r.own(e) {
			rep.Timeline[bucket(e.Seen.Sub(r.start))].Drops++
		}
	}
	for _, e := range r.rec.closes {
		if e.Kind == load.ClosedIdle && !r.own(e) {
			rep.Timeline[bucket(e.Seen.Sub(r.start))].Closed++
		}
	}
}
