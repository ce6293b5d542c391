package workerpool

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"gapless/internal/pidfd"

	"pgregory.net/rapid"
)

// operation is one step of a random history. It was drawn before the bubble, which a failing draw could not leave.
type operation struct {
	kind string
	n    int           // which worker, or how many
	d    time.Duration // passes after it
}

func (o operation) String() string { return fmt.Sprintf("%s(%d) %v", o.kind, o.n, o.d) }

var operations = []string{
	"die", "die", "leader dies", "hang", "break", "mend", "serve", "freeze", "thaw", "replace", "scale", "reload", "reload all", "next",
	"drain others", "signal",
}

// Whatever happens in whatever order:
//
//   - states move along their table (Observe checks it),
//   - nobody gets the stop signal before the gate has withdrawn him, and nobody is withdrawn while he is the only one
//     admitted, except when everything stops,
//   - nothing is started while the pool is frozen, nor by a master that is gone,
//   - nobody gets the stop signal twice,
//   - a reload that succeeds has every slot of its revision, and a scaling as many slots as it was to bring,
//   - whoever hangs is ended, and in the end every process has been waited for, and no handle is used after its end.
func TestPool_Properties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		workers := rapid.IntRange(1, 4).Draw(rt, "workers")
		ops := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) operation {
			return operation{
				kind: rapid.SampledFrom(operations).Draw(rt, "kind"),
				n:    rapid.IntRange(0, 7).Draw(rt, "n"),
				d:    rapid.SampledFrom([]time.Duration{0, 0, time.Millisecond, 150 * time.Millisecond, 5 * time.Second, 2 * time.Minute}).Draw(rt, "d"),
			}
		}), 1, 25).Draw(rt, "operations")
		ending := rapid.SampledFrom([]string{"drain", "drain twice", "drain and kill", "kill"}).Draw(rt, "ending")
		var faults []string
		synctest.Test(t, func(t *testing.T) {
			h := newHistory(t)
			h.start(workers)
			for _, op := range ops {
				h.do(op)
			}
			h.finish(ending)
			faults = h.w.faults()
		})
		if len(faults) > 0 {
			rt.Fatal(strings.Join(faults, "\n"))
		}
	})
}

// history is a chain of masters that random operations happen to.
type history struct {
	t        *testing.T
	w        *world
	m        *master
	gone     []*master
	revision int  // of the latest reload
	broken   bool // what is started now fails
	frozen   bool
	records  []Record
	pending  []chan struct{} // operations that run beside
	stops    bool            // everything stops: the last worker is told, too
}

func newHistory(t *testing.T) *history {
	h := &history{t: t, w: newWorld(t)}
	h.w.bubble = true
	h.w.script = func(p *program) error {
		if h.frozen {
			p.w.violate("process %d was started while the pool was frozen", p.pid)
		}
		if h.broken && p.pid%2 == 0 {
			return syscall.ENOENT
		}
		p.serving = !h.broken && p.pid%4 > 0
		if !h.broken && !p.serving { // it takes its time
			time.AfterFunc(200*time.Millisecond, p.serve)
		}
		if p.pid%3 > 0 { // the others ignore it
			p.on[syscall.SIGTERM] = func(p *program) {
				time.AfterFunc(time.Duration(p.pid%5)*time.Second, func() { p.die(pidfd.Status{Known: true}) })
			}
		}
		p.members = p.pid % 2
		p.told = func(p *program, sig syscall.Signal) bool { return h.check(p, sig) }
		return nil
	}
	return h
}

// check looks at a signal; the world is locked.
func (h *history) check(p *program, sig syscall.Signal) bool {
	if sig != syscall.SIGTERM {
		return true
	}
	if p.signals[sig] > 1 {
		h.w.violate("process %d got %d stop signals", p.pid, p.signals[sig])
	}
	if len(h.w.entries("withdrawn", p.pid)) == 0 {
		h.w.violate("process %d got the stop signal before it was withdrawn", p.pid)
	}
	return true
}

// alone looks at a withdrawal: whoever takes new connections may stop only while another one goes on to.
func (h *history) alone(m *master, i Info) {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if h.stops || m.k.gone || len(h.w.entries("admit", i.PID)) == 0 || len(h.w.entries("withdraw", i.PID)) > 0 {
		return
	}
	for pid := range m.gate.admitted {
		if pid != i.PID && !isClosed(h.w.programs[pid].done) {
			return
		}
	}
	h.w.violate("process %d was withdrawn while nobody else was admitted", i.PID)
}

// master returns a new one whose gate is watched.
func (h *history) master(generation int) *master {
	m := h.w.newMaster(generation, func(c *Config) { c.StartTimeout = 10 * time.Second })
	m.gate.withdrawing = func(i Info) { h.alone(m, i) }
	return m
}

func (h *history) start(workers int) {
	h.m = h.master(1)
	if err := h.m.Start(h.t.Context(), workers); err != nil {
		h.w.violate("start: %v", err)
	}
}

func (h *history) locked(f func()) {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	f()
}

// beside runs what blocks until workers are ready.
func (h *history) beside(f func()) {
	done := make(chan struct{})
	h.pending = append(h.pending, done)
	go func() { defer close(done); f() }()
}

// order is of those that make room for others.
var order = Order{Reason: "a random order", Timeout: 30 * time.Second}

func (h *history) do(op operation) {
	m := h.m
	switch alive := h.w.alive(); op.kind {
	case "die":
		if len(alive) > 0 {
			p := alive[op.n%len(alive)]
			h.locked(func() { p.members = 0; p.exit(exited3) })
		}
	case "leader dies":
		if len(alive) > 0 {
			alive[op.n%len(alive)].die(pidfd.Status{Known: true, Signal: syscall.SIGABRT})
		}
	case "hang":
		if len(alive) > 0 {
			m.Abort(alive[op.n%len(alive)].pid, "it hangs")
		}
	case "break", "mend":
		h.locked(func() { h.broken = op.kind == "break" })
	case "serve":
		if len(alive) > 0 {
			alive[op.n%len(alive)].serve()
		}
	case "freeze":
		h.freeze()
	case "thaw":
		h.thaw()
	case "replace":
		if len(alive) > 0 {
			h.beside(func() { _ = m.Replace(alive[op.n%len(alive)].pid, order) }) // it may be busy, or fail
		}
	case "scale":
		h.scale(1 + op.n%4)
	case "reload":
		h.reload(func(ctx context.Context, r Recipe) error { return m.Reload(ctx, r, 1+op.n%3, order) })
	case "reload all":
		h.reload(func(ctx context.Context, r Recipe) error {
			return m.ReloadAll(ctx, r, func() error { return nil }, order)
		})
	case "next":
		h.next()
	case "drain others":
		h.drainOthers()
	case "signal":
		m.SignalAll(syscall.SIGUSR1, nil)
	}
	if op.d > 0 {
		<-time.After(op.d)
	} else {
		synctest.Wait()
	}
}

// scale does so unless something else changes the slots, as a master would. It may fail.
func (h *history) scale(n int) {
	if h.busy() {
		return
	}
	m, ctx, before := h.m, h.t.Context(), len(h.m.Slots())
	h.beside(func() {
		want := n
		if err := m.Scale(ctx, n, order); err != nil {
			want = before
		}
		if got := len(m.Slots()); got != want {
			h.locked(func() { h.w.violate("%d slots after scaling from %d to %d, want %d", got, before, n, want) })
		}
	})
}

// reload begins a reload, unless something else changes the slots, as a master would. It may fail; if it does not, every
// slot has a recipe of its revision.
func (h *history) reload(run func(context.Context, Recipe) error) {
	if h.busy() {
		return
	}
	m, ctx := h.m, h.t.Context()
	h.revision++
	r := Recipe{Revision: h.revision, Launch: m.cfg.Launch}
	h.beside(func() {
		if err := run(ctx, r); err != nil {
			return
		}
		stale := 0
		m.mu.Lock()
		for _, s := range m.slots {
			if s.recipe.Revision != r.Revision && !s.leaving {
				stale++
			}
		}
		m.mu.Unlock()
		if stale > 0 {
			h.locked(func() { h.w.violate("%d slots are of an older revision after a reload", stale) })
		}
	})
}

// busy tells whether something that was begun beside goes on.
func (h *history) busy() bool {
	for _, done := range h.pending {
		if !isClosed(done) {
			return true
		}
	}
	return false
}

func (h *history) freeze() {
	records, err := h.m.Freeze()
	if err != nil {
		h.locked(func() { h.w.violate("freeze: %v", err) })
	}
	closeAll(h.records)
	h.records = records
	h.locked(func() { h.frozen = true })
}

func (h *history) thaw() {
	if h.frozen {
		h.locked(func() { h.frozen = false })
		closeAll(h.records)
		h.records = nil
		h.m.Thaw()
	}
}

// settle waits for the operations beside. Slots that are being filled end at the latest with their StartTimeout.
func (h *history) settle() {
	h.thaw()
	for _, done := range h.pending {
		<-done
	}
	h.pending = nil
}

// next brings a new master, which takes over as lifecycle does: it is ready before it adopts, and drains the others.
func (h *history) next() {
	h.settle()
	next := h.master(h.m.cfg.Generation + 1)
	if err := next.Start(h.t.Context(), 2); err != nil { // the upgrade is aborted
		next.end()
		return
	}
	h.freeze()
	h.locked(func() { h.frozen = false })
	h.m.leave()
	h.gone = append(h.gone, h.m)
	h.m = next
	next.Adopt(travel(h.t, h.records))
	h.records = nil
	h.drainOthers()
}

func (h *history) drainOthers() { h.m.DrainOthers(order) }

func (h *history) finish(ending string) {
	h.settle()
	h.locked(func() { h.stops = true })
	stop := order
	stop.Stop = true
	switch ending {
	case "drain twice":
		h.m.DrainAll(stop)
		h.m.DrainAll(stop)
	case "drain and kill":
		h.m.DrainAll(stop)
		<-time.After(time.Second)
		h.m.Kill("a second signal")
	case "kill":
		h.m.Kill("a second signal")
	default:
		h.m.DrainAll(stop)
	}
	select {
	case <-h.m.Empty():
	case <-time.After(10 * time.Minute):
		h.locked(func() { h.w.violate("it did not end within 10 minutes") })
	}
	h.m.end()
	for _, m := range h.gone {
		m.end()
	}
}
