package control

import (
	"encoding/json"
	"sync"
)

// maxLag is how many events a client may be behind before it is told no more of them. An upgrade of 4096 workers has
// some 20,000, and an event takes about 200 bytes.
const maxLag = 32768

// line is a line of a stream: an Event, or, as the last one, an outcome.
type line struct {
	Event
	Result *Result  `json:"result,omitempty"`
	Error  *problem `json:"error,omitempty"`
}

// problem is an error as it travels.
type problem struct {
	Code    string `json:"code"` // one of the codes
	Message string `json:"message"`
}

// MarshalJSON leaves the fields of the event out of an outcome, and the other way round.
func (l line) MarshalJSON() ([]byte, error) {
	if l.Result == nil && l.Error == nil {
		return json.Marshal(l.Event)
	}
	return json.Marshal(struct {
		Result *Result  `json:"result,omitempty"`
		Error  *problem `json:"error,omitempty"`
	}{l.Result, l.Error})
}

// stream carries lines from an operation, which must never wait, to a client, which may be slow or gone.
type stream struct {
	mu     sync.Mutex
	lines  []line
	lost   int           // events that found no room
	left   bool          // nobody reads any more
	ended  bool          // there is no more to come
	change chan struct{} // holds one element: something of the above has changed
}

func newStream() *stream { return &stream{change: make(chan struct{}, 1)} }

// event adds an event. It never blocks.
func (s *stream) event(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.left || s.ended:
		return
	case len(s.lines) >= maxLag:
		s.lost++
		return
	}
	s.lines = append(s.lines, line{Event: e})
	s.wake()
}

// end adds the outcome, for which there is always room, and ends the stream. The zero outcome adds no line.
func (s *stream) end(outcome line) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.ended = true
	if outcome.Result != nil || outcome.Error != nil {
		s.lines = append(s.lines, outcome)
	}
	s.wake()
}

// leave says that nobody reads any more.
func (s *stream) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left, s.lines = true, nil
}

// take returns the lines that there are, how many were lost before them, and whether more may come.
func (s *stream) take() (lines []line, lost int, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines, s.lines, lost, s.lost = s.lines, nil, s.lost, 0
	return lines, lost, !s.ended
}

// wake is called with the lock held.
func (s *stream) wake() {
	select {
	case s.change <- struct{}{}:
	default:
	}
}
