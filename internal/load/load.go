package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// maxFailures bounds how many drops are described one by one.
const maxFailures = 100

// Run sends what c says and reports what came back. The error is ErrConfig, or the cause of ctx's end together with the
// report of what was done until then.
func Run(ctx context.Context, c Config) (Report, error) {
	c, err := c.withDefaults()
	if err != nil {
		return Report{}, err
	}
	start := time.Now()
	var slots []*slot
	h := &halt{seen: make(chan struct{})}
	for i := range c.Streams {
		for range c.Streams[i].Connections {
			s := newSlot(&c, &c.Streams[i], len(slots), start)
			s.halt = h
			slots = append(slots, s)
		}
	}
	over := make(chan struct{})
	var wg, watch sync.WaitGroup
	watch.Go(func() { h.watch(c.Stop, over) })
	for _, s := range slots {
		wg.Go(func() { s.run(ctx) })
	}
	wg.Wait()
	close(over)
	watch.Wait()
	rep := newReport(&c, start, time.Since(start))
	for _, s := range slots {
		rep.add(&s.tally)
	}
	rep.finish()
	if ctx.Err() != nil {
		return rep, fmt.Errorf("load on %s: %w", c.Address, context.Cause(ctx))
	}
	return rep, nil
}

// halt tells the slots that Config.Stop was closed, and when.
type halt struct {
	seen chan struct{} // closed when it is; at is set before
	at   time.Time
}

func (h *halt) watch(stop, over <-chan struct{}) {
	select {
	case <-stop:
		h.at = time.Now()
		close(h.seen)
	case <-over:
	}
}

// slot is one client: at most one connection at a time, a schedule of its own, and a tally that only it writes.
type slot struct {
	cfg    *Config
	stream *Stream
	index  int
	rng    *rand.Rand
	start  time.Time
	plan   schedule
	half   time.Duration // half a round trip
	halt   *halt

	// own is by how much the exchange is late through ourselves: timers and goroutines that ran late, in it and, as far as
	// its connection was busy with them, in those before. The server is not blamed for it.
	own  time.Duration
	free time.Time // when the last exchange was over

	conn   *conn
	since  time.Time // when conn was made
	served int       // responses on conn
	closes bool      // a response on conn has announced its end
	tally  tally
}

func newSlot(c *Config, s *Stream, index int, start time.Time) *slot {
	rng := rand.New(rand.NewPCG(c.Seed, uint64(index)))
	return &slot{
		cfg: c, stream: s, index: index, rng: rng, start: start, half: c.RTT / 2,
		plan: newSchedule(s, rng, c.Duration, c.RTT),
	}
}

// run performs the schedule.
func (s *slot) run(ctx context.Context) {
	defer s.retire()
	end := s.start.Add(s.cfg.Duration)
	n := s.plan.n
	var before time.Time // when the last send was intended
	for k := range n {
		begin := s.start.Add(s.plan.at(k))
		out := compose(s.stream, s.cfg.host(), s.rng, s.index, k, begin)
		if s.stream.Kind == Silent {
			out.shift(s.stream.Silence) // latency counts from when the first byte should go
		}
		if time.Now().After(end) { // the answers took so long that its time is over
			s.tally.Unsent += n - k
			return
		}
		switch s.await(ctx, begin) {
		case onTime:
		case stopped:
			s.tally.Unsent += s.due(s.halt.at, k, n)
			return
		case ended:
			s.tally.Unsent += n - k
			return
		}
		if k > 0 { // a connection that is asked for more than it can carry is late by that, too
			s.own += max(0, s.stream.Busy(s.cfg.RTT)-begin.Sub(before))
		}
		s.begin(begin)
		s.exchange(ctx, out)
		s.tally.lag = append(s.tally.lag, s.own)
		before, s.free = begin, time.Now()
	}
}

// begin settles, as an exchange begins, how much of its lateness is our own: of the time for which its connection was
// still busy as much as we were late then, and all that has passed since it was free.
func (s *slot) begin(intended time.Time) {
	s.own = min(s.own, max(0, s.free.Sub(intended)))
	if s.free.Before(intended) {
		s.free = intended
	}
	s.own += max(0, time.Since(s.free))
}

// due is how many of the sends k to n-1 were intended before a time for sure: they wait for a connection that is not free.
func (s *slot) due(now time.Time, k, n int) int {
	passed := int(now.Sub(s.start)/s.stream.period()) - 1 // one that is due just now is not late
	return max(0, min(passed, n)-k)
}

// wakeup says why a wait is over.
type wakeup int

const (
	onTime  wakeup = iota
	ended          // ctx
	stopped        // Config.Stop
)

// await waits for the next send.
func (s *slot) await(ctx context.Context, t time.Time) wakeup {
	select { // also when the time has come long ago
	case <-s.halt.seen:
		return stopped
	default:
	}
	return s.wait(ctx, t, s.halt.seen)
}

// sleepUntil waits within an exchange, which Stop does not interrupt, and notes how late it is then. It is false when ctx
// has ended.
func (s *slot) sleepUntil(ctx context.Context, t time.Time) bool {
	if s.wait(ctx, t, nil) != onTime {
		return false
	}
	s.own += max(0, time.Since(t))
	return true
}

func (s *slot) wait(ctx context.Context, t time.Time, stop <-chan struct{}) wakeup {
	if ctx.Err() != nil {
		return ended
	}
	d := time.Until(t)
	if d <= 0 {
		return onTime
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return onTime
	case <-stop:
		return stopped
	case <-ctx.Done():
		return ended
	}
}

func (s *slot) sleep(ctx context.Context, d time.Duration) bool {
	return s.sleepUntil(ctx, time.Now().Add(d))
}

// exchange is one send from the decision to the last response that is seen. When it returns, the slot's view of the
// world has caught up with everything that it used.
func (s *slot) exchange(ctx context.Context, out *send) {
	if s.conn != nil && (s.closes || !s.cfg.Blind && s.conn.endedBy(time.Now().Add(-s.half))) {
		s.retire()
	}
	if s.conn == nil {
		if err := s.connect(ctx); err != nil {
			s.settle(ctx, out, failure(time.Now(), err, false))
			return
		}
		if s.stream.Kind == WebSocket && !s.handshake(ctx, out) {
			return // the handshake is what was lost
		}
	}
	if s.stream.Kind == Silent {
		if !s.sleep(ctx, s.stream.Silence) {
			s.settle(ctx, out, failure(time.Now(), ctx.Err(), false))
			return
		}
		if !s.cfg.Blind && s.conn.endedBy(time.Now().Add(-s.half)) {
			// It was closed under a client that had not begun to send: counted as a closed connection. The request goes
			// to another one, as any client's would.
			s.retire()
			if err := s.connect(ctx); err != nil {
				s.settle(ctx, out, failure(time.Now(), err, false))
				return
			}
		}
	}
	if !s.transmit(ctx, out) {
		return
	}
	s.collect(ctx, out)
	if !s.stream.Kind.lasts() {
		s.retire()
	}
}

// handshake makes the new connection a WebSocket. It is a request of its own, with the intended time of the send that
// needs it.
func (s *slot) handshake(ctx context.Context, first *send) bool {
	out := composeHandshake(s.stream, s.cfg.host(), s.rng, first.requests[0])
	if !s.transmit(ctx, out) {
		return false
	}
	if s.collect(ctx, out) {
		return true
	}
	s.retire()
	return false
}

// connect opens a connection: the handshake reaches the server half a round trip after the decision and is known to be
// complete half a round trip after that.
func (s *slot) connect(ctx context.Context) error {
	if !s.sleep(ctx, s.half) {
		return ctx.Err()
	}
	dialCtx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	nc, err := s.cfg.Dial(dialCtx, s.cfg.Network, s.cfg.Address)
	s.tally.Connects++
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		if nc != nil {
			nc.Close()
		}
		return err
	}
	s.conn, s.served, s.closes, s.since = newConn(nc), 0, false, time.Now()
	if !s.sleep(ctx, s.half) {
		return ctx.Err()
	}
	return nil
}

// transmit puts the bytes on the wire, half a round trip after the decision. It is false if ctx ended before the first.
func (s *slot) transmit(ctx context.Context, out *send) bool {
	if !s.sleep(ctx, s.half) {
		s.settle(ctx, out, failure(time.Now(), ctx.Err(), false))
		return false
	}
	s.conn.await(out.requests)
	for i, piece := range out.pieces {
		if i > 0 && !s.sleep(ctx, out.gaps[i-1]) {
			break // collect sees ctx too
		}
		s.conn.nc.SetWriteDeadline(time.Now().Add(s.cfg.Timeout))
		if _, err := s.conn.nc.Write(piece); err != nil {
			// A server may answer, say with 413, and close without reading everything: what it said is still to be read.
			// If it said nothing the reader learns of the end by itself.
			break
		}
	}
	return true
}

// collect waits for the outcome of each request, in order, and tells whether all were right.
func (s *slot) collect(ctx context.Context, out *send) bool {
	timer := time.NewTimer(s.cfg.Timeout)
	defer timer.Stop()
	var last time.Time
	right := true
	for _, r := range out.requests {
		var o outcome
		select {
		case o = <-r.done:
		case <-timer.C:
			s.conn.abort(outcome{at: time.Now(), class: Timeout, err: fmt.Errorf("no response within %v", s.cfg.Timeout)})
			o = <-r.done
		case <-ctx.Done():
			s.conn.abort(failure(time.Now(), context.Canceled, false))
			o = <-r.done
		}
		right = s.record(r, o) == "" && right
		if o.closes || o.class != "" {
			s.closes = true
		}
		if o.class == "" {
			s.served++
		}
		last = o.at
	}
	s.sleepUntil(ctx, last.Add(s.half))
	return right
}

// settle gives all requests of a send that never reached the wire the same outcome.
func (s *slot) settle(ctx context.Context, out *send, o outcome) {
	if ctx.Err() != nil {
		o.class = canceled
	}
	for _, r := range out.requests {
		s.record(r, o)
	}
	s.closes = true
}

func (s *slot) record(r *request, o outcome) Class {
	class, err := judge(s.stream, r, o)
	seen := o.at.Add(s.half)
	s.tally.count(class)
	at, took := r.intended.Sub(s.start), max(0, seen.Sub(r.intended)-s.own)
	s.tell(r, o, class, err, seen, took)
	if class == "" {
		s.tally.Samples = append(s.tally.Samples, Sample{At: at, Latency: took})
	}
	if g := o.header.Get(HeaderGeneration); g != "" {
		s.tally.generation(g, seen.Sub(s.start))
	}
	if class == "" || class == canceled || class == crossed || len(s.tally.Failures) >= maxFailures {
		return class
	}
	s.tally.Failures = append(s.tally.Failures, Failure{
		Stream: s.stream.Name, ID: r.id, Class: class, Err: err, At: at, Took: took, Served: s.served,
	})
	return class
}

// retire closes the connection, if there is one.
func (s *slot) retire() {
	if s.conn == nil {
		return
	}
	how := s.conn.close()
	kind, counts := ClosedIdle, &s.tally.ClosedIdle
	if how == announced {
		kind, counts = ClosedAnnounced, &s.tally.ClosedAnnounced
	}
	// A client that asked for Connection: close expects the end after its response.
	if how != ours && (s.stream.Kind.lasts() || how == unannounced && s.served == 0) {
		*counts++
		s.tellEnd(kind)
	}
	s.conn = nil
}
