package workerpool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"gapless/internal/notify"
	"gapless/internal/pidfd"
	"gapless/internal/procfs"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// kernel is the Spawner and the Prober of one master. When the master is gone its handles do nothing any more.
type kernel struct {
	w    *world
	gone bool // guarded by the world's lock
}

// Spawn starts a program.
func (k *kernel) Spawn(l Launch) (Process, error) {
	w := k.w
	w.mu.Lock()
	defer w.mu.Unlock()
	w.attempts++
	if k.gone {
		w.violate("a master that is gone started a process")
	}
	p := &program{w: w, pid: 1000 + w.attempts, launch: l, slot: -1, done: make(chan struct{}),
		on: make(map[syscall.Signal]func(*program)), signals: make(map[syscall.Signal]int)}
	if slot := p.env("SLOT"); slot != "" {
		p.slot, _ = strconv.Atoi(slot)
	}
	w.note("attempt", p.pid)
	if w.script != nil {
		if err := w.script(p); err != nil {
			return nil, err
		}
	} else {
		p.serving = true
		p.exitOn(syscall.SIGTERM, 0)
	}
	w.programs[p.pid] = p
	w.note("spawn", p.pid)
	return k.handle(p), nil
}

// Attach is how the next master gets hold of a program.
func (k *kernel) Attach(pid int, f *os.File) (Process, error) {
	f.Close()
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	p := k.w.programs[pid]
	if p == nil {
		return nil, fmt.Errorf("no process %d", pid)
	}
	k.w.note("attach", pid)
	return k.handle(p), nil
}

func (k *kernel) handle(p *program) *handle {
	p.holders++
	return &handle{program: p, k: k}
}

// Waiting is what the prober sees.
func (k *kernel) Waiting(_ context.Context, pid int, _ map[uint64]bool) (procfs.Evidence, error) {
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	p := k.w.programs[pid]
	switch {
	case p == nil || isClosed(p.done):
		return procfs.Evidence{}, os.ErrProcessDone
	case p.blind != nil:
		return procfs.Evidence{}, p.blind
	case p.serving:
		return procfs.Evidence{PID: pid, How: procfs.Epoll}, nil
	}
	return procfs.Evidence{}, nil
}

// Took is what the prober sees of connections.
func (k *kernel) Took(pid int, _ map[uint64]bool) bool {
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	p := k.w.programs[pid]
	return p != nil && p.busy
}

// Elsewhere is what the prober sees of other sockets.
func (k *kernel) Elsewhere(pid int, _ map[uint64]bool) []string {
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	if p := k.w.programs[pid]; p != nil {
		return p.elsewhere
	}
	return nil
}

// handle is one master's hold on a program.
type handle struct {
	*program
	k      *kernel
	closed bool
}

// PID returns the program's.
func (h *handle) PID() int { return h.pid }

// Done is closed when the program has ended.
func (h *handle) Done() <-chan struct{} { return h.done }

// check is called with the world locked by every use; false: nothing happens.
func (h *handle) check(use string) bool {
	if h.closed {
		h.w.violate("%s of %d after its handle was closed", use, h.pid)
	}
	return !h.k.gone && !h.closed
}

// Signal sends to the program alone.
func (h *handle) Signal(sig syscall.Signal) error {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if !h.check("Signal") || isClosed(h.done) {
		return os.ErrProcessDone
	}
	h.w.note(name(sig), h.pid)
	h.signals[sig]++
	if h.told != nil {
		h.told(h.program, sig)
	}
	h.react(sig)
	return nil
}

// SignalGroup sends to the program and its group.
func (h *handle) SignalGroup(sig syscall.Signal) error {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	dead := isClosed(h.done)
	if !h.check("SignalGroup") || dead && h.members == 0 {
		return os.ErrProcessDone
	}
	if sig == 0 {
		return nil
	}
	h.w.note("group "+name(sig), h.pid)
	if sig == syscall.SIGKILL {
		h.members = 0
	}
	if !dead {
		h.react(sig)
	} else if h.onGroup != nil {
		h.onGroup(h.program, sig)
	}
	return nil
}

func (h *handle) react(sig syscall.Signal) {
	if sig == syscall.SIGKILL {
		h.exit(pidfd.Status{Known: true, Signal: sig})
	} else if f := h.on[sig]; f != nil {
		f(h.program)
	}
}

func name(sig syscall.Signal) string {
	switch sig {
	case syscall.SIGTERM:
		return "TERM"
	case syscall.SIGKILL:
		return "KILL"
	}
	return sig.String()
}

// Status is how it ended.
func (h *handle) Status() pidfd.Status {
	<-h.done
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.check("Status")
	h.reaped = true
	return h.status
}

// File stands for a duplicate of the pidfd.
func (h *handle) File() (*os.File, error) {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if h.closed {
		return nil, os.ErrClosed
	}
	return os.Open(os.DevNull)
}

// Close ends this hold.
func (h *handle) Close() error {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.check("Close")
	if !h.closed {
		h.holders--
	}
	h.closed = true
	return nil
}

// fakeGate admits and withdraws without any socket. The funcs, where set, are called without the world's lock.
type fakeGate struct {
	k        *kernel
	sockets  func(slot int) ([]Socket, error)
	admit    func(Info) error
	withdraw func(Info)
	// withdrawing is called before anything has changed.
	withdrawing func(Info)

	admitted map[int]bool // by PID; guarded by the world's lock
}

func (g *fakeGate) note(what string, pid int) {
	g.k.w.mu.Lock()
	defer g.k.w.mu.Unlock()
	if !g.k.gone {
		g.k.w.note(what, pid)
	}
	switch what {
	case "admit":
		g.admitted[pid] = true
	case "withdraw", "release":
		delete(g.admitted, pid)
	}
}

// Sockets returns one socket for each slot.
func (g *fakeGate) Sockets(slot int) ([]Socket, error) {
	if g.sockets != nil {
		return g.sockets(slot)
	}
	return []Socket{{Name: "http", Lane: "http." + strconv.Itoa(slot), Inode: uint64(100 + slot)}}, nil
}

// Admit notes the worker.
func (g *fakeGate) Admit(i Info) error {
	if g.admit != nil {
		if err := g.admit(i); err != nil {
			return err
		}
	}
	g.note("admit", i.PID)
	return nil
}

// Withdraw notes when it begins and when it is over.
func (g *fakeGate) Withdraw(i Info) {
	if g.withdrawing != nil {
		g.withdrawing(i)
	}
	g.note("withdraw", i.PID)
	if g.withdraw != nil {
		g.withdraw(i)
	}
	g.note("withdrawn", i.PID)
}

// Release notes the state in which the end came.
func (g *fakeGate) Release(i Info, was State) {
	g.note("release", i.PID)
	g.note("was "+was.String(), i.PID)
}

// master is one Pool with all that it stands on.
type master struct {
	*Pool
	k    *kernel
	gate *fakeGate
	logs *observer.ObservedLogs
}

// newMaster returns a pool of the world; change may alter its configuration.
func (w *world) newMaster(generation int, change func(*Config)) *master {
	w.t.Helper()
	k := &kernel{w: w}
	m := &master{k: k, gate: &fakeGate{k: k, admitted: make(map[int]bool)}}
	core, logs := observer.New(zapcore.DebugLevel)
	m.logs = logs
	var mu sync.Mutex
	states := make(map[int]State)
	cfg := Config{
		Generation: generation, Spawner: k, Prober: k, Gate: m.gate, Log: zap.New(core),
		Launch: func(slot int, _ []Socket) (Launch, error) {
			return Launch{Path: "/bin/fake", Args: []string{"fake"}, Env: []string{"SLOT=" + strconv.Itoa(slot)}}, nil
		},
		StartTimeout: DefaultStartTimeout,
		Random:       func() float64 { return 0 },
		Observe: func(e Event) {
			mu.Lock()
			last, known := states[e.PID]
			states[e.PID] = e.State
			mu.Unlock()
			w.mu.Lock()
			defer w.mu.Unlock()
			if known && (last != e.From || !last.mayBecome(e.State)) {
				w.violate("worker %d went from %s (last seen %s) to %s", e.PID, e.From, last, e.State)
			}
			if !k.gone {
				w.note("state "+e.State.String(), e.PID)
			}
		},
	}
	if change != nil {
		change(&cfg)
	}
	if w.bubble {
		cfg.Listen = func() (*notify.Socket, error) { return nil, errors.New("no socket that is read in a bubble") }
	}
	m.Pool = New(cfg)
	return m
}

// leave is the master's exit: what it still does reaches nobody. Its goroutines end when its programs do.
func (m *master) leave() {
	m.stop()
	m.k.w.mu.Lock()
	defer m.k.w.mu.Unlock()
	m.k.gone = true
}

// end kills what is left and waits for all goroutines.
func (m *master) end() {
	m.Kill("the test is over")
	m.Wait()
	for _, e := range m.logs.All() {
		if e.Level >= zapcore.DPanicLevel {
			m.k.w.t.Errorf("the pool logged %s %v", e.Message, e.ContextMap())
		}
	}
}

// verify fails the test if something happened that never may, and when programs are left.
func (w *world) verify() {
	w.t.Helper()
	for _, msg := range w.faults() {
		w.t.Error(msg)
	}
}

// faults returns what verify complains about.
func (w *world) faults() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	faults := slices.Clone(w.strayed)
	for pid, p := range w.programs {
		switch {
		case !isClosed(p.done):
			faults = append(faults, fmt.Sprintf("process %d runs on", pid))
		case !p.reaped:
			faults = append(faults, fmt.Sprintf("process %d was not waited for", pid))
		case p.holders != 0:
			faults = append(faults, fmt.Sprintf("%d handles of process %d are open", p.holders, pid))
		case p.members != 0:
			faults = append(faults, fmt.Sprintf("process %d left %d members of its group", pid, p.members))
		}
	}
	if len(faults) > 0 {
		faults = append(faults, "journal:\n"+w.story())
	}
	return faults
}

// orderAlone orders a worker to drain although nobody may be there who goes on.
func (w *worker) orderAlone(o Order) {
	w.pool.mu.Lock()
	w.leaving = true
	w.pool.mu.Unlock()
	w.order(o)
}
