package workerpool

import "time"

// stillMoves is how long ago the last bytes of a worker may have moved for it to count as one that gets on. A draining worker
// reports once a second, so that even one that has missed a report is not taken for one that stands still.
const stillMoves = 2500 * time.Millisecond

// progress is what a draining worker has told of the bytes that it moves. It decides whether a drain whose time is over
// may take more of it.
type progress struct {
	Extra time.Duration `json:"extra,omitempty"` // what it may take at most beyond its time
	Bytes int64         `json:"bytes,omitempty"` // moved since the drain began, as last told
	Moved time.Time     `json:"moved,omitzero"`  // when that last grew, at first when it was told to drain
}

// heard takes in a report.
func (g *progress) heard(bytes int64, now time.Time) {
	if bytes > g.Bytes {
		g.Bytes, g.Moved = bytes, now
	}
}

// more is how long after now a worker whose time was over at due may go on until it is looked at again; 0 or less: its
// end has come.
func (g *progress) more(due, now time.Time) time.Duration {
	return min(due.Add(g.Extra).Sub(now), g.Moved.Add(stillMoves).Sub(now))
}
