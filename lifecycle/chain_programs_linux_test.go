package lifecycle

import (
	"context"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gapless/internal/pidfd"
	"gapless/internal/procfs"
	"gapless/workerpool"
)

// dummy is a program in a worker's place.
type dummy struct {
	c          *chain
	pid        int
	generation int
	done       chan struct{}

	// Guarded by the chain's mu.
	status  pidfd.Status
	serving bool
	reaped  bool
	ready   bool // has been
	terms   int
}

// Spawn starts a program that serves at once, or soon.
func (s *reign) Spawn(l workerpool.Launch) (workerpool.Process, error) {
	frozen := s.m.state.get() == Frozen
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.gone || frozen {
		c.fault("master %d started a worker, and may not (gone: %v)", s.m.generation, s.gone)
	}
	// No such process exists: numbers end at 2^22.
	p := &dummy{c: c, pid: 5_000_000 + len(c.programs), done: make(chan struct{})}
	for _, kv := range l.Env {
		if v, ok := strings.CutPrefix(kv, "GAPLESS_GENERATION="); ok {
			p.generation, _ = strconv.Atoi(v)
		}
	}
	if p.generation != s.m.generation {
		c.fault("master %d started a worker of generation %d", s.m.generation, p.generation)
	}
	c.programs = append(c.programs, p)
	c.note("%d starts in generation %d", p.pid, p.generation)
	switch {
	case c.broken && p.pid%2 == 0:
		time.AfterFunc(time.Second, func() { p.die(pidfd.Status{Known: true, Code: 3}) })
	case c.broken:
	case p.pid%3 == 0:
		time.AfterFunc(300*time.Millisecond, func() { c.locked(func() { p.serving = true }) })
	default:
		p.serving = true
	}
	return &hold{dummy: p, s: s}, nil
}

func (p *dummy) die(status pidfd.Status) { p.c.locked(func() { p.exit(status) }) }

// Attach is how the next master gets hold of a program.
func (s *reign) Attach(pid int, f *os.File) (workerpool.Process, error) {
	f.Close()
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return &hold{dummy: s.c.programs[pid-5_000_000], s: s}, nil
}

// Waiting is what the prober sees.
func (s *reign) Waiting(_ context.Context, pid int, _ map[uint64]bool) (procfs.Evidence, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if p := s.c.programs[pid-5_000_000]; p.serving && !p.dead() {
		p.ready = true
		return procfs.Evidence{PID: pid, How: procfs.Epoll}, nil
	}
	return procfs.Evidence{}, nil
}

// Took sees nothing.
func (*reign) Took(int, map[uint64]bool) bool { return false }

// Elsewhere sees nothing.
func (*reign) Elsewhere(int, map[uint64]bool) []string { return nil }

// Rest does nothing.
func (s *reign) Rest() error { return nil }

// hold is one master's hold on a program.
type hold struct {
	*dummy
	s *reign
}

// PID is the program's.
func (h *hold) PID() int { return h.pid }

// Done is closed when it has ended.
func (h *hold) Done() <-chan struct{} { return h.done }

// Signal sends to the program; a stop signal is looked at first.
func (h *hold) Signal(sig syscall.Signal) error {
	alone := sig == syscall.SIGTERM && h.alone()
	c := h.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.s.gone || h.dead() {
		return os.ErrProcessDone
	}
	c.note("%d gets %s from master %d", h.pid, sig, h.s.m.generation)
	if sig != syscall.SIGTERM {
		return nil
	}
	if alone && h.ready && !c.stops {
		c.fault("%d got the stop signal while nobody else took connections", h.pid)
	}
	if h.terms++; h.terms > 1 {
		c.fault("%d got %d stop signals", h.pid, h.terms)
	}
	if h.pid%4 > 0 { // the others ignore it
		time.AfterFunc(time.Duration(h.pid%5)*time.Second, func() { h.die(pidfd.Status{Known: true}) })
	}
	return nil
}

// alone tells whether nobody takes new connections beside this program, although nobody has died since it began to drain.
func (h *hold) alone() bool {
	began := time.Time{}
	for _, w := range h.s.m.pool.Workers() {
		if w.PID == h.pid {
			began = w.Since
		} else if w.Generation == h.s.m.generation && w.State == workerpool.Ready {
			return false
		}
	}
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	return h.c.death.Before(began)
}

// SignalGroup reaches the program alone; only KILL does something.
func (h *hold) SignalGroup(sig syscall.Signal) error {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	if h.s.gone || h.dead() {
		return os.ErrProcessDone
	}
	if sig == syscall.SIGKILL {
		h.exit(pidfd.Status{Known: true, Signal: sig})
	}
	return nil
}

// Status is how it ended.
func (h *hold) Status() pidfd.Status {
	<-h.done
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	h.reaped = h.reaped || !h.s.gone
	return h.status
}

// File stands for a duplicate of the pidfd.
func (h *hold) File() (*os.File, error) { return os.Open(os.DevNull) }

// Close does nothing.
func (h *hold) Close() error { return nil }
