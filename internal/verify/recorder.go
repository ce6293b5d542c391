package verify

import (
	"sync"
	"time"

	"gapless/internal/load"
)

// liveWidth is how much time one column of the live strip shows.
const liveWidth = 250 * time.Millisecond

// sample is one answer, with times from the start of the load.
type sample struct {
	at, latency time.Duration
	stream      int
}

// recorder takes the events of a load. Its methods may be called from any goroutine.
type recorder struct {
	start   time.Time
	streams []Stream
	index   map[string]int

	mu      sync.Mutex
	samples []sample
	drops   []load.Event
	closes  []load.Event
	first   map[string]time.Duration // when a generation's first answer was seen
	order   []string                 // generations by that
	live    []column
}

// column is one column of the live strip.
type column struct {
	max   time.Duration
	drops int
}

func newRecorder(start time.Time, streams []Stream) *recorder {
	r := &recorder{start: start, streams: streams, index: map[string]int{}, first: map[string]time.Duration{}}
	for i, s := range streams {
		r.index[s.Name] = i
	}
	return r
}

func (r *recorder) record(e load.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.index[e.Stream]
	seen := e.Seen.Sub(r.start)
	if e.Generation != "" {
		if _, known := r.first[e.Generation]; !known {
			r.first[e.Generation] = seen
			r.order = append(r.order, e.Generation)
		}
	}
	switch e.Kind {
	case load.Answered:
		s := sample{e.At.Sub(r.start), e.Took, i}
		r.samples = append(r.samples, s)
		if c := r.column(seen); c != nil && r.measures(i) {
			c.max = max(c.max, s.latency)
		}
	case load.Dropped:
		r.drops = append(r.drops, e)
		if c := r.column(seen); c != nil {
			c.drops++
		}
	case load.ClosedIdle, load.ClosedAnnounced:
		r.closes = append(r.closes, e)
	}
}

// column is the one that a time belongs to.
func (r *recorder) column(at time.Duration) *column {
	if at < 0 {
		return nil
	}
	for n := int(at / liveWidth); len(r.live) <= n; {
		r.live = append(r.live, column{})
	}
	return &r.live[at/liveWidth]
}

// measures tells whether the answers of a stream count for the latency of the whole.
func (r *recorder) measures(stream int) bool {
	s := &r.streams[stream]
	return !s.Slow && s.Kind != load.WebSocket
}

// Live is what is known while the load runs.
type Live struct {
	At       time.Duration
	Answered int
	Drops    int
	Closed   int           // idle connections
	Columns  []LiveColumn  // the latest last
	Width    time.Duration // of a column
}

// LiveColumn is what happened within a column's time.
type LiveColumn struct {
	Max   time.Duration // the longest answer; 0: none came
	Drops int
	Act   bool // an act began
}

// show returns the last n columns.
func (r *recorder) show(now time.Duration, n int, acts []time.Duration) *Live {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := &Live{At: now, Answered: len(r.samples), Drops: len(r.drops), Width: liveWidth}
	for _, c := range r.closes {
		if c.Kind == load.ClosedIdle {
			l.Closed++
		}
	}
	r.column(now)
	from := max(0, len(r.live)-n)
	for i, c := range r.live[from:] {
		col := LiveColumn{Max: c.max, Drops: c.drops}
		for _, a := range acts {
			col.Act = col.Act || int(a/liveWidth) == from+i
		}
		l.Columns = append(l.Columns, col)
	}
	return l
}
