package workerpool

import (
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
	"die", "die", "leader dies", "break", "mend", "serve", "freeze", "thaw", "replace", "scale", "next", "drain others", "signal",
}

// Whatever happens in whatever order:
//
//   - states move along their table (Observe checks it),
//   - nobody gets the stop signal before the gate has withdrawn him, and nobody while he is the only one admitted,
//     except when everything stops,
//   - nothing is started while the pool is frozen, nor by a master that is gone,
//   - nobody gets the stop signal twice,
//   - in the end every process has been waited for, and no handle is used after its end.
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
	t       *testing.T
	w       *world
	m       *master
	gone    []*master
	broken  bool // what is started now fails
	frozen  bool
	records []Record
	pending []chan struct{} // operations that run beside
	stops   bool            // everything stops: the last worker is told, too
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
		p.serving = !h.broken
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
	others := 0
	for _, other := range h.w.programs {
		if other != p && !isClosed(other.done) && other.signals[syscall.SIGTERM] == 0 && h.m.gate.admitted[other.pid] {
			others++
		}
	}
	if others == 0 && !h.stops && len(h.w.entries("admit", p.pid)) > 0 {
		h.w.violate("process %d got the stop signal while nobody else was admitted", p.pid)
	}
	return true
}

func (h *history) start(workers int) {
	h.m = h.w.newMaster(1, func(c *Config) { c.StartTimeout = 10 * time.Second })
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
		ctx := h.t.Context()
		if up := 1 + op.n%4; up >= len(m.Slots()) || h.serving() > 1 {
			h.beside(func() { _ = m.Scale(ctx, max(up, len(m.Slots())), order) }) // it may fail
		}
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

// serving is how many workers of the own generation are ready.
func (h *history) serving() int {
	n := 0
	for _, i := range h.m.Workers() {
		if i.Generation == h.m.cfg.Generation && i.State == Ready {
			n++
		}
	}
	return n
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
	next := h.w.newMaster(h.m.cfg.Generation+1, func(c *Config) { c.StartTimeout = 10 * time.Second })
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

func (h *history) drainOthers() {
	if h.serving() > 0 {
		h.m.DrainOthers(order)
	}
}

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
