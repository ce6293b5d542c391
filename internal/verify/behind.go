package verify

import (
	"fmt"
	"math"

	"gapless/internal/load"
)

const (
	// maxBehind is the share of requests that may remain unsent before the load is not the one that was asked for.
	maxBehind = 0.05
	// stalled is how many times the steady maximum an answer around an act must have taken, and stalledAtLeast how long, to
	// name that act as what kept the load from keeping up.
	stalled        = 5
	stalledAtLeast = seconds(1)
)

// fault says why the load was not the one that was asked for; "" if it was. What is to blame comes first: connections that
// cannot carry the rate whoever serves, this machine, or the server.
func (p *Plan) fault(l *load.Report, r *Report) string {
	all := l.Unsent + l.Requests
	unsent := float64(l.Unsent) > maxBehind*float64(all)
	own := l.Fault()
	if unsent || l.Lag.P99 > l.LagLimit {
		for _, s := range p.Streams {
			if text := s.tooFew(p); text != "" {
				return text
			}
		}
	}
	switch {
	case l.Lag.P99 > l.LagLimit:
		return fmt.Sprintf("this machine was too slow, or too busy, for the load: requests were %s late through the generator at the 99th percentile, and --max-lag is %v: lower --rate, or give it more CPU",
			ms(secs(l.Lag.P99)), l.LagLimit)
	case own != "" || !unsent:
		return own
	}
	text := fmt.Sprintf("the server did not keep up with the rate: %d of %d requests found no time to be sent, for all connections waited for answers", l.Unsent, all)
	for _, a := range r.Acts {
		switch {
		case !a.OK:
			return text + "; " + a.title() + " has failed"
		case a.Drops > 0:
			return text + "; see what was dropped since " + a.title()
		case a.Latency.Max >= stalledAtLeast && a.Latency.Max > stalled*r.Steady.Max:
			return fmt.Sprintf("%s, for up to %s since %s: its release counts as ready before it answers", text, ms(a.Latency.Max), a.title())
		}
	}
	return text + ": lower --rate, or raise --connections if answers take long"
}

// tooFew tells whether a stream has not enough connections for its rate, however fast its server is.
func (s *Stream) tooFew(p *Plan) string {
	busy := s.Busy(p.RTT)
	needs := s.Rate * busy.Seconds()
	if needs <= float64(s.Connections) {
		return ""
	}
	return fmt.Sprintf("the load did not keep up: %s needs %.0f requests a second, each takes %s, and so %s can send at most %.0f: lower --rate, or use %.0f connections",
		s.Name, s.Rate, ms(secs(busy)), count(s.Connections, "connection", "connections"), float64(s.Connections)/busy.Seconds(), math.Ceil(needs*1.3))
}
