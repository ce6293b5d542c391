package verify

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"gapless/internal/load"
)

// Run performs a plan. Its error is ErrNothing, what is wrong with the plan, or ctx's cause, then together with the
// report of what was done until then. What the server did wrong is in the report.
func Run(ctx context.Context, p Plan) (Report, error) {
	p, err := p.withDefaults()
	if err != nil {
		return Report{}, err
	}
	if err := probe(ctx, &p); err != nil {
		return Report{}, err
	}
	r := &runner{plan: &p, stop: make(chan struct{})}
	r.start = time.Now()
	r.rec = newRecorder(r.start, p.Streams)
	loadCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	var found load.Report
	var failed error
	go func() {
		defer close(done)
		found, failed = load.Run(loadCtx, r.load())
	}()
	var ticks sync.WaitGroup
	ticking, quiet := context.WithCancel(ctx)
	ticks.Go(func() { r.tick(ticking) })
	err = r.acts(ctx, done)
	close(r.stop)
	<-done
	quiet()
	ticks.Wait()
	switch {
	case ctx.Err() != nil: // whatever else it has ended: the load, an act
		err = context.Cause(ctx)
	case failed != nil:
		err = fmt.Errorf("%w: %w", ErrNothing, failed)
	case err != nil:
		err = fmt.Errorf("%w: %w", ErrNothing, err)
	}
	return r.report(found), err
}

// runner is one run.
type runner struct {
	plan  *Plan
	rec   *recorder
	start time.Time
	stop  chan struct{} // closed when the acts are over

	mu    sync.Mutex // guards what follows, and calls of plan.Progress
	done  []performed
	begun []time.Duration // when each act began
}

// performed is an act that is over.
type performed struct {
	act        Act
	begin, end time.Duration
	outcome    Outcome
}

// load is the configuration of the load client.
func (r *runner) load() load.Config {
	p := r.plan
	c := load.Config{
		Address: p.address(), Host: p.URL.Host, Timeout: p.Timeout, RTT: p.RTT, LagLimit: p.MaxLag, Seed: p.Seed,
		Stop: r.stop, Events: r.rec.record, MaxRequests: math.MaxInt,
		// The acts end it. This is longer than they can take.
		Duration: p.Duration + time.Duration(len(p.Acts)+1)*(p.ActTimeout+p.SettleBetween) + time.Minute,
	}
	for _, s := range p.Streams {
		c.Streams = append(c.Streams, s.Stream)
	}
	c.Dial = p.dial()
	return c
}

func (p *Plan) tls() *tls.Config {
	return &tls.Config{ServerName: p.URL.Hostname(), InsecureSkipVerify: p.Insecure, NextProtos: []string{"http/1.1"}}
}

// acts performs the acts, each at its time, and waits for the end of the plan's duration.
func (r *runner) acts(ctx context.Context, over <-chan struct{}) error {
	for i, a := range r.plan.Acts {
		due := r.plan.begins(i)
		if n := len(r.done); n > 0 {
			due = max(due, r.done[n-1].end+r.plan.SettleBetween)
		}
		if err := r.until(ctx, over, due); err != nil {
			return err
		}
		r.perform(ctx, i, a)
	}
	end := r.plan.Duration
	if n := len(r.done); n > 0 {
		end = max(end, r.done[n-1].end+tail)
	}
	return r.until(ctx, over, end)
}

// until waits for a time of the run. When several things have happened, that the run was ended comes first: else an act
// would begin after its end.
func (r *runner) until(ctx context.Context, over <-chan struct{}, at time.Duration) error {
	timer := time.NewTimer(time.Until(r.start.Add(at)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-over:
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	select {
	case <-over:
		return errLoadOver
	default:
		return nil
	}
}

// errLoadOver ends the acts when there is no load any more that could feel them. Why is in the load's error.
var errLoadOver = errors.New("the load has ended before the acts")

// errInterrupted stands for what an act could not do because its run was ended.
var errInterrupted = errors.New("interrupted")

func (r *runner) perform(ctx context.Context, i int, a Act) {
	d := performed{act: a, begin: time.Since(r.start)}
	r.mu.Lock()
	r.begun = append(r.begun, d.begin)
	r.plan.Progress(Progress{At: d.begin, Act: a.Name, Number: i + 1, Total: len(r.plan.Acts)})
	r.mu.Unlock()
	actCtx, cancel := context.WithTimeoutCause(ctx, r.plan.ActTimeout, fmt.Errorf("not done after %v (--deploy-timeout)", r.plan.ActTimeout))
	defer cancel()
	outcome, err := a.Do(actCtx)
	if err != nil {
		switch {
		case ctx.Err() != nil:
			err = errInterrupted
		case errors.Is(err, context.DeadlineExceeded):
			err = context.Cause(actCtx)
		}
		outcome.Err = err
	}
	d.end, d.outcome = time.Since(r.start), outcome
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done = append(r.done, d)
	text := outcome.Note
	if outcome.Err != nil {
		text = outcome.Err.Error()
	}
	r.plan.Progress(Progress{
		At: d.end, Act: a.Name, Number: i + 1, Total: len(r.plan.Acts), Ended: true, Outcome: text, Failed: outcome.Err != nil,
	})
}

// tick shows the figures while the load runs.
func (r *runner) tick(ctx context.Context) {
	t := time.NewTicker(liveWidth)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		r.mu.Lock()
		now := time.Since(r.start)
		r.plan.Progress(Progress{At: now, Live: r.rec.show(now, maxStrip, r.begun)})
		r.mu.Unlock()
	}
}

// maxStrip is how many columns are shown at most.
const maxStrip = 400
