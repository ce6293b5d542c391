package load

import (
	"net"
	"time"
)

// EventKind says what an Event tells of.
type EventKind int

// The kinds of events.
const (
	Answered        EventKind = iota // a complete and right response
	Dropped                          // a lost request: Class and Err say how
	ClosedIdle                       // a connection that the server closed with nothing on the wire, without a word before
	ClosedAnnounced                  // a lasting connection whose end the server had announced
)

// Event is one outcome, or the end of one connection.
type Event struct {
	Kind   EventKind
	Stream string        // its name
	At     time.Time     // when the request was intended; for a connection, as Seen
	Seen   time.Time     // when the client knew
	Took   time.Duration // of a request: from At to Seen, without what we ourselves were late

	ID         string // of the request
	Class      Class  // of a drop
	Err        error  // of a drop
	Generation string // X-Gapless-Generation of the response

	Port      int       // of the connection at our end; 0: it is not TCP, or there was none
	Connected time.Time // when the connection was made
	Served    int       // responses that it had given before
}

// tell tells of an outcome, unless it is nobody's.
func (s *slot) tell(r *request, o outcome, class Class, err error, seen time.Time, took time.Duration) {
	if s.cfg.Events == nil || class == canceled || class == local || class == crossed {
		return
	}
	e := Event{Stream: s.stream.Name, At: r.intended, Seen: seen, Took: took, ID: r.id, Generation: o.header.Get(HeaderGeneration)}
	if class != "" {
		e.Kind, e.Class, e.Err = Dropped, class, err
	}
	s.cfg.Events(s.onConn(e))
}

// tellEnd tells of the end of the connection.
func (s *slot) tellEnd(kind EventKind) {
	if s.cfg.Events != nil {
		seen := s.conn.endAt.Add(s.half) // set before the reader stopped
		s.cfg.Events(s.onConn(Event{Kind: kind, Stream: s.stream.Name, At: seen, Seen: seen}))
	}
}

// onConn adds what is known of the connection, if there is one.
func (s *slot) onConn(e Event) Event {
	if s.conn != nil {
		e.Connected, e.Served = s.since, s.served
		if a, ok := s.conn.nc.LocalAddr().(*net.TCPAddr); ok {
			e.Port = a.Port
		}
	}
	return e
}
