package lifecycle

import (
	"context"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"gapless/internal/control"

	"go.uber.org/zap"
)

// The patience of the control API.
const (
	statusPatience = 2 * time.Second // with a master that was asked for the status
	// vacancyPatience is how long a status waits for a master to take charge. Between two, and when a dead one's place is
	// taken for the first time, that is enough; who waits for a crash loop learns of it.
	vacancyPatience = 250 * time.Millisecond
	drainedEvery    = 100 * time.Millisecond // how often an old generation is looked for that a client waits for
)

// controller is the parent as the control socket sees it. It numbers commands, passes them to the master in charge, and
// waits for what comes of them, from whichever master.
type controller struct {
	p       *parent
	version string
	log     *zap.Logger

	mu     sync.Mutex
	calls  map[uint64]*call
	heard  map[int]func(control.Event)
	next   int
	last   *control.LastUpgrade
	stopAt time.Time // when the drain of a stop begins that lets it serve on before; zero: none does

	vacancy vacancy
}

// call is a command that waits for its outcome.
type call struct {
	result chan control.Result // buffered
	status chan control.Status // buffered
}

func newController(p *parent, version string, log *zap.Logger) *controller {
	return &controller{p: p, version: version, log: log, calls: make(map[uint64]*call), heard: make(map[int]func(control.Event))}
}

// order passes a command to the master in charge, unless ctx ends before. done forgets the call.
func (c *controller) order(ctx context.Context, cmd command) (cl *call, done func()) {
	cl = &call{result: make(chan control.Result, 1), status: make(chan control.Status, 1)}
	seq := c.p.nextSeq()
	c.mu.Lock()
	c.calls[seq] = cl
	c.mu.Unlock()
	select {
	case c.p.commands <- linkMessage{Seq: seq, Command: &cmd}:
	case <-c.p.over:
	case <-ctx.Done():
	}
	return cl, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.calls, seq)
	}
}

// awaited tells whether somebody waits for what comes of a command.
func (c *controller) awaited(seq uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[seq] != nil
}

// hear takes in what a master sent, except acknowledgements. It is called in order, and must not block.
func (c *controller) hear(m linkMessage, files []*os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.Event != nil {
		c.note(*m.Event)
		for _, handle := range c.heard {
			handle(*m.Event)
		}
	}
	cl := c.calls[m.Seq]
	if cl == nil {
		return
	}
	if m.Result != nil {
		select {
		case cl.result <- *m.Result:
		default:
		}
	}
	if m.Status && len(files) == 1 {
		s, err := readStatus(files[0])
		if err != nil {
			c.log.Error("the master's status cannot be read", zap.Error(err))
			return
		}
		select {
		case cl.status <- s:
		default:
		}
	}
}

// note remembers the outcome of upgrades: the master that failed to bring one is not the one that is asked later.
func (c *controller) note(e control.Event) {
	if e.Kind == control.KindUpgrade && (e.State == "done" || e.State == "aborted") {
		c.last = &control.LastUpgrade{Generation: e.Generation, OK: e.State == "done", Reason: e.Reason, Tail: e.LastLines,
			TookSeconds: e.TookSeconds, At: e.Time}
	}
}

// Status asks the master, and answers without one where there is none.
func (c *controller) Status(ctx context.Context) (control.Status, error) {
	cl, done := c.order(ctx, command{Verb: verbStatus})
	defer done()
	t := time.NewTimer(statusPatience)
	defer t.Stop()
	s := control.Status{State: control.StateNoMaster, Detail: "no master is in charge", Addresses: []control.Address{},
		Generations: []control.Generation{}, Warnings: []string{}}
	for answered := false; !answered; {
		since, changed := c.vacancy.watch()
		var vacant <-chan time.Time
		if !since.IsZero() {
			vacant = time.After(time.Until(since.Add(vacancyPatience)))
			s.Detail = "no master is in charge; the workers serve, and one is being started"
		}
		select {
		case s = <-cl.status:
			answered = true
		case <-vacant:
			answered = true
		case <-changed:
		case <-t.C:
			answered = true
			if since.IsZero() {
				s.Detail = fmt.Sprintf("the master in charge has not answered for %v", statusPatience)
			}
		case <-c.p.over:
			return s, control.ErrNotRunning
		case <-ctx.Done():
			return s, context.Cause(ctx)
		}
	}
	s.Version, s.ParentPID = c.version, os.Getpid()
	c.mu.Lock()
	s.LastUpgrade = c.last
	if d := time.Until(c.stopAt); d > 0 {
		s.Detail += fmt.Sprintf("; it stops: the drain begins in %v", d.Round(time.Second))
	}
	c.mu.Unlock()
	return s, nil
}

// Reload is POST /v1/reload.
func (c *controller) Reload(ctx context.Context, _ control.ReloadRequest, progress func(control.Event)) (control.Result, error) {
	return c.operate(ctx, command{Verb: verbReload}, progress)
}

// Scale is POST /v1/scale.
func (c *controller) Scale(ctx context.Context, req control.ScaleRequest, progress func(control.Event)) (control.Result, error) {
	return c.operate(ctx, command{Verb: verbScale, Workers: req.Workers}, progress)
}

// Stop is POST /v1/stop: a signal to the parent itself, and the wait for its end.
func (c *controller) Stop(_ context.Context, req control.StopRequest, progress func(control.Event)) (control.Result, error) {
	began := time.Now()
	defer c.listen(progress)()
	sig := syscall.SIGTERM
	if req.Now {
		sig = syscall.SIGQUIT
	}
	select {
	case c.p.signals <- sig:
	case <-c.p.over:
	}
	<-c.p.over
	return control.Result{OK: c.p.status == 0, TookSeconds: time.Since(began).Seconds()}, nil
}

// Subscribe is GET /v1/events.
func (c *controller) Subscribe(ctx context.Context, handle func(control.Event)) error {
	defer c.listen(handle)()
	select {
	case <-ctx.Done():
	case <-c.p.over:
	}
	return nil
}

// listen calls handle for each event until the returned function is called.
func (c *controller) listen(handle func(control.Event)) (stop func()) {
	if handle == nil {
		return func() {}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	id := c.next
	c.next++
	c.heard[id] = handle
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.heard, id)
	}
}

// operate passes a command on and waits for its result.
func (c *controller) operate(ctx context.Context, cmd command, progress func(control.Event)) (control.Result, error) {
	defer c.listen(progress)()
	cl, done := c.order(ctx, cmd)
	defer done()
	select {
	case r := <-cl.result:
		return r, nil
	case <-c.p.over:
		select {
		case r := <-cl.result:
			return r, nil
		default:
			return control.Result{}, fmt.Errorf("gapless has ended before the %s: %w", cmd.Verb, control.ErrNotRunning)
		}
	case <-ctx.Done():
		return control.Result{}, context.Cause(ctx)
	}
}
