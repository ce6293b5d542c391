package load

import (
	"math/rand/v2"
	"time"
)

// schedule says when the sends of one connection are intended: one in each period, at a phase that is the connection's own
// and with jitter that is each send's own, so that all connections together send evenly. Between two of them lies at least
// the time that a send takes by itself, as far as a period has room for that: a client must not wait for its own
// connection and call that the server's latency.
type schedule struct {
	rng    *rand.Rand
	period time.Duration
	phase  time.Duration
	jitter time.Duration // the most of it
	n      int           // sends
	end    time.Duration // nothing is intended later
}

func newSchedule(s *Stream, rng *rand.Rand, d, rtt time.Duration) schedule {
	period := s.period()
	room := period - s.Busy(rtt)
	if s.Kind.lasts() {
		room -= rtt // to connect again, where the server ends connections
	}
	n := s.sends(d)
	return schedule{
		rng: rng, period: period, n: n, end: time.Duration(n) * period,
		phase: time.Duration(rng.Float64() * float64(period)), jitter: max(0, min(period/2, room)),
	}
}

// at draws when send k is intended, from the start of the run. It is called for each k in turn.
func (s *schedule) at(k int) time.Duration {
	base := time.Duration(k)*s.period + s.phase
	return base + time.Duration(s.rng.Float64()*float64(min(s.jitter, s.end-base)))
}

// Busy is how long a send keeps its connection busy at least, with a server that answers as it is known to: a
// stream needs at least its rate times that as connections.
func (s Stream) Busy(rtt time.Duration) time.Duration {
	d := s.Takes + rtt
	if !s.Kind.lasts() {
		d += rtt // to connect
	}
	if s.Kind == Silent {
		d += s.Silence
	}
	if s.Split > 0 {
		d += 2 * maxSplitGap
	}
	return d
}
