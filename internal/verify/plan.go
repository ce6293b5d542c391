package verify

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"gapless/internal/load"
)

// ErrNothing says that nothing could be measured: the server did not start, or does not answer.
var ErrNothing = errors.New("nothing could be measured")

// Defaults of a Plan.
const (
	DefaultRate        = 200.0
	DefaultConnections = 16
	DefaultTimeout     = 10 * time.Second
	DefaultActTimeout  = 2 * time.Minute
	DefaultMaxLag      = 250 * time.Millisecond
	DefaultSettle      = time.Second

	steady = 2 * time.Second // of load before the first act
	tail   = time.Second     // of load after the last
	perAct = 3 * time.Second // of load for each act
	aura   = time.Second     // what happens so long after an act still belongs to it
)

// Plan says what to send, and what to do meanwhile.
type Plan struct {
	Target  string   // for people: a command, or the URL
	Deploy  string   // for people: how it is deployed
	URL     *url.URL // http or https; its path is not used
	Streams []Stream
	Acts    []Act

	Duration      time.Duration // of the load, over which the acts are spread; 0 = 3 s and 3 s for each act. Slow acts prolong it
	SettleBetween time.Duration // at least so long between the end of an act and the next; 0 = DefaultSettle
	Timeout       time.Duration // of a request; 0 = DefaultTimeout
	ActTimeout    time.Duration // of an act; 0 = DefaultActTimeout
	RTT           time.Duration // the emulated round trip, see package load
	MaxLag        time.Duration // the generator may be so late at the 99th percentile; 0 = DefaultMaxLag
	Insecure      bool          // do not check the certificate of https
	Seed          uint64

	// Progress, if set, is called for what happens, from one goroutine at a time.
	Progress func(Progress)
}

// Stream is one kind of client.
type Stream struct {
	load.Stream
	// Slow requests are there to be in flight when something happens; how long they take says nothing, and stays out of
	// the latency of the whole.
	Slow bool
	// AnyStatus takes the status of the first answer, before anything is done, for the right one.
	AnyStatus bool
	// Grow adds connections where answers take so long that those there are could not carry the rate.
	Grow bool
	// From says where the path comes from, for errors: a flag, or FromFile.
	From string
}

// What Stream.From may say.
const (
	FromPath = "--path"
	FromSlow = "--slow"
	FromWS   = "--ws"
	FromFile = "--requests"
)

// Act is one thing that is done to the server under load.
type Act struct {
	Name  string // "upgrade", or that of a fault
	Fault bool
	Do    func(context.Context) (Outcome, error)
}

// Outcome is what came of an act that could be performed.
type Outcome struct {
	Err        error  // what should have worked did not, or the other way round
	Generation int    // the new one; 0: unknown
	Note       string // for people
	// Own are the connections of a process that was killed, by the client's port, with the time of the kill.
	Own   map[int]bool
	OwnAt time.Time
}

// Progress is what happens during a run.
type Progress struct {
	At      time.Duration // since the load began
	Act     string        // an act that begins or has ended
	Number  int           // of the act, from 1
	Total   int           // acts
	Ended   bool
	Outcome string // of an act that has ended, for people
	Failed  bool
	Live    *Live // if set, figures to show and nothing else
}

func (p Plan) withDefaults() (Plan, error) {
	def(&p.SettleBetween, DefaultSettle)
	def(&p.Timeout, DefaultTimeout)
	def(&p.ActTimeout, DefaultActTimeout)
	def(&p.MaxLag, DefaultMaxLag)
	def(&p.Duration, steady+tail+time.Duration(len(p.Acts))*perAct)
	if p.Progress == nil {
		p.Progress = func(Progress) {}
	}
	switch {
	case p.URL == nil || p.URL.Host == "":
		return p, errors.New("url: is empty")
	case p.URL.Scheme != "http" && p.URL.Scheme != "https":
		return p, fmt.Errorf("url: %s is neither http nor https", p.URL)
	case len(p.Streams) == 0:
		return p, errors.New("streams: none")
	}
	names := map[string]bool{}
	for i := range p.Streams {
		s := &p.Streams[i]
		def(&s.Method, http.MethodGet)
		def(&s.Path, "/")
		if s.Name == "" || names[s.Name] {
			s.Name = fmt.Sprintf("%s %s %d", s.Method, s.Path, i+1)
		}
		names[s.Name] = true
	}
	return p, nil
}

// begins is when an act is due, from the start of the load: they are spread evenly.
func (p *Plan) begins(i int) time.Duration {
	lead, trail := min(steady, p.Duration/3), min(tail, p.Duration/6)
	return lead + time.Duration(i)*(p.Duration-lead-trail)/time.Duration(len(p.Acts))
}

// address is what is dialled.
func (p *Plan) address() string {
	if p.URL.Port() != "" {
		return p.URL.Host
	}
	if p.URL.Scheme == "https" {
		return p.URL.Host + ":443"
	}
	return p.URL.Host + ":80"
}

func def[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}
