package lifecycle

import (
	"cmp"
	"fmt"
	"os"
	"strings"
	"time"

	"gapless/internal/cgroup"
	"gapless/internal/control"
	"gapless/internal/procfs"
	"gapless/upgrade"
	"gapless/workerpool"

	"go.uber.org/zap"
)

// observe logs a worker's change of state, once.
func (m *master) observe(e workerpool.Event) {
	fields := []zap.Field{fPID(e.PID), zap.Int("worker", e.Slot), fGeneration(e.Generation)}
	if e.Role != "" { // a relay, which has no slot
		fields = []zap.Field{fPID(e.PID), zap.String("role", e.Role), fGeneration(e.Generation)}
	}
	slot, from := e.Slot, e.From.String()
	if e.State == workerpool.Starting {
		from = ""
	}
	m.probation(e)
	m.changed(e)
	m.emit(control.Event{Kind: control.KindWorker, Generation: e.Generation, Worker: &slot, PID: e.PID, From: from,
		State: e.State.String(), Reason: e.Reason, TookSeconds: e.Took.Seconds()})
	m.tally.Load().heed(e, m.emit)
	log := m.events
	if e.State == workerpool.Starting {
		log.Info("Started worker process", fields...)
		return
	}
	fields = append(fields, zap.Stringer("from", e.From), zap.Stringer("state", e.State), zap.Duration("took", e.Took))
	if e.Reason != "" {
		fields = append(fields, zap.String("reason", e.Reason))
	}
	if e.State == workerpool.Ready {
		fields = append(fields, adapterFields(e.Info)...)
	}
	switch e.State {
	case workerpool.Ready:
		log.Info("Worker is ready", fields...)
		m.hintShared(e)
		m.tellAdapter(e)
	case workerpool.Draining:
		log.Info("Worker drains", fields...)
	case workerpool.Killing:
		log.Warn("Worker killed", fields...)
	case workerpool.Exited:
		log.Info("Finished worker process", fields...)
	case workerpool.Starting:
	}
}

// emit tells the parent, and through it whoever listens at the control socket, what happens.
func (m *master) emit(e control.Event) {
	e.Time = time.Now()
	m.link.send(linkMessage{Event: &e})
	m.herald.kick()
}

// hintShared says once when workers take one connection at a time and each has a queue of its own: a connection then
// waits behind a busy worker while another one idles.
func (m *master) hintShared(e workerpool.Event) {
	if e.Reason == string(procfs.Accept) && m.cfg.Accept == upgrade.ModeSteered && m.cfg.Workers > 1 && m.pred == nil {
		m.hint.Do(func() {
			m.log.Info("The workers wait in accept(2), one connection at a time: --accept shared may suit them better", fPID(e.PID))
		})
	}
}

// tellMemory logs, once, what the workers occupy, and warns where an upgrade would not have room for twice that.
func (m *master) tellMemory() {
	var sum int64
	own := m.mine()
	if len(own) == 0 {
		return
	}
	for _, w := range own {
		mem := memoryOf(w.PID)
		sum += cmp.Or(mem.PSS, mem.RSS)
	}
	m.log.Info("Memory of the workers", zap.Int64("memory_bytes", sum), zap.Int64("per_worker_bytes", sum/int64(len(own))), zap.Int("workers", len(own)))
	if warning := tooBig(sum, cgroup.Reader{}.MemoryLimit()); warning != "" {
		m.log.Warn("Memory is tight: " + warning)
	}
}

// serving lists what is served and how, for the log.
func (m *master) serving() []string {
	var all []string
	for _, a := range m.inv.Addresses() {
		all = append(all, m.urlOf(a))
	}
	return all
}

// accepts lists how the workers share each address.
func (m *master) accepts() []string {
	var all []string
	for _, a := range m.inv.Addresses() {
		all = append(all, m.accepting(a.Name))
	}
	return all
}

// banner tells a person on a terminal what runs and what to type.
func (m *master) banner() string {
	parent := os.Getppid()
	var b strings.Builder
	name := "the built-in app"
	if len(m.cfg.Command) > 0 {
		name = strings.Join(m.cfg.Command, " ")
	}
	fmt.Fprintf(&b, "\n  gapless %s serves %s\n\n", m.cfg.Version, name)
	for _, a := range m.inv.Addresses() {
		fmt.Fprintf(&b, "    %-9s %s  (%s)\n", "address", m.urlOf(a), m.accepting(a.Name))
	}
	if m.preview.file != nil {
		fmt.Fprintf(&b, "    %-9s %s  (the staged generation)\n", "preview", m.preview.url())
	}
	for _, n := range m.cfg.Notes {
		fmt.Fprintf(&b, "    %-9s %s\n", n.Label, strings.ReplaceAll(n.Text, "{url}", m.urlOf(m.inv.Addresses()[0])))
	}
	fmt.Fprintf(&b, "    %-9s %d\n    %-9s %d\n", "workers", m.cfg.Workers, "parent", parent)
	fmt.Fprintf(&b, "    %-9s gapless upgrade, or kill -USR2 %d\n    %-9s Ctrl-C, gapless stop, or kill %d\n\n", "upgrade", parent, "stop", parent)
	return b.String()
}

// accepting says how the workers share an address, and why if not as asked.
func (m *master) accepting(address string) string {
	mode := m.inv.Mode(address)
	if ok, why := m.inv.Steerable(address); !ok {
		return fmt.Sprintf("one socket for all workers: %s", why)
	}
	if mode == upgrade.ModeShared {
		return "one lane per generation"
	}
	return "a lane per worker"
}

// urlOf is what a person can open, of an address that is claimed.
func (m *master) urlOf(a upgrade.Address) string {
	if bound, ok := m.inv.Bound(a.Name); ok {
		a = bound // which the name of a socket unit does not say
	}
	return urlOf(a)
}

func urlOf(a upgrade.Address) string {
	if strings.HasPrefix(a.Network, "unix") {
		return "unix:" + a.Addr
	}
	addr := a.Addr
	addr = strings.Replace(addr, "[::]:", "localhost:", 1)
	addr = strings.Replace(addr, "0.0.0.0:", "localhost:", 1)
	return "http://" + addr
}
