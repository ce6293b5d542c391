package workerpool

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gapless/internal/channel"
	"gapless/internal/packet"
	"gapless/internal/pidfd"
)

// world is the kernel, the gate and the prober of a test: programs instead of processes, and a journal of all that was
// done to them.
type world struct {
	t testing.TB

	// script makes a program of a launch: it sets what the program does, or says why it cannot run. It is called with
	// the world locked; nil: the program serves at once and exits on TERM.
	script func(p *program) error
	// bubble is set in synctest bubbles, where a goroutine that reads from a socket would stop the clock: workers then
	// cannot be heard over their notify sockets.
	bubble bool

	mu       sync.Mutex
	changed  *sync.Cond
	journal  []entry
	programs map[int]*program
	attempts int // of Spawn
	strayed  []string
}

// entry is one thing that happened.
type entry struct {
	what string
	pid  int
	at   time.Time
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, programs: make(map[int]*program)}
	w.changed = sync.NewCond(&w.mu)
	return w
}

// note adds to the journal; the world is locked.
func (w *world) note(what string, pid int) {
	w.journal = append(w.journal, entry{what, pid, time.Now()})
	w.changed.Broadcast()
}

// violate records that something happened that never may.
func (w *world) violate(format string, args ...any) {
	w.strayed = append(w.strayed, fmt.Sprintf(format, args...))
}

// await returns when cond, which is called with the world locked, is true.
func (w *world) await(what string, cond func() bool) {
	w.t.Helper()
	limit := 20 * time.Second
	if w.bubble {
		limit = time.Hour
	}
	expired := false
	t := time.AfterFunc(limit, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		expired = true
		w.changed.Broadcast()
	})
	defer t.Stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	for !cond() {
		if expired {
			w.t.Fatalf("not in time: %s; journal:\n%s", what, w.story())
		}
		w.changed.Wait()
	}
}

// story is the journal for people; the world is locked.
func (w *world) story() string {
	var b strings.Builder
	for _, e := range w.journal {
		fmt.Fprintf(&b, "%s %s %d\n", e.at.Format("05.000"), e.what, e.pid)
	}
	return b.String()
}

// awaitEntry returns the n-th (from 0) entry of a kind; pid 0 is any.
func (w *world) awaitEntry(what string, pid, n int) entry {
	w.t.Helper()
	var found []entry
	w.await(fmt.Sprintf("%s %d, number %d", what, pid, n), func() bool {
		found = w.entries(what, pid)
		return len(found) > n
	})
	return found[n]
}

// entries returns those of a kind; the world is locked.
func (w *world) entries(what string, pid int) []entry {
	var found []entry
	for _, e := range w.journal {
		if e.what == what && (pid == 0 || e.pid == pid) {
			found = append(found, e)
		}
	}
	return found
}

func (w *world) count(what string, pid int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.entries(what, pid))
}

// about returns, in order, what happened to a process, without its states.
func (w *world) about(pid int) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var whats []string
	for _, e := range w.journal {
		if e.pid == pid && !strings.HasPrefix(e.what, "state ") {
			whats = append(whats, e.what)
		}
	}
	return whats
}

// alive returns the programs that run, by PID.
func (w *world) alive() []*program {
	w.mu.Lock()
	defer w.mu.Unlock()
	var ps []*program
	for _, pid := range slices.Sorted(maps.Keys(w.programs)) {
		if p := w.programs[pid]; !isClosed(p.done) {
			ps = append(ps, p)
		}
	}
	return ps
}

// program is a fake process.
type program struct {
	w      *world
	pid    int
	slot   int // -1: a helper
	launch Launch
	done   chan struct{}

	// Guarded by the world's lock.
	status    pidfd.Status
	serving   bool                                      // the prober sees it wait
	blind     error                                     // the prober cannot see it
	elsewhere []string                                  // where it listens with sockets of its own
	busy      bool                                      // it accepts connection after connection, and is never seen to wait
	on        map[syscall.Signal]func(*program)         // what a signal does to it; no entry: nothing
	members   int                                       // of its group, beside itself
	onGroup   func(p *program, sig syscall.Signal)      // what a signal does to members whose leader is gone
	ended     func(p *program)                          // called when it ends
	holders   int                                       // handles that are open
	reaped    bool                                      // Status was asked for
	ch        *channel.Conn                             // the worker's end, if the script called speak
	stdout    *os.File                                  // likewise, of its output
	signals   map[syscall.Signal]int                    // that reached it
	told      func(p *program, sig syscall.Signal) bool // see TestPool_Properties
}

// exitOn makes the program exit with a status on a signal.
func (p *program) exitOn(sig syscall.Signal, code int) {
	p.on[sig] = func(p *program) { p.exit(pidfd.Status{Known: true, Code: code}) }
}

// exit ends the program; the world is locked.
func (p *program) exit(s pidfd.Status) {
	if isClosed(p.done) {
		return
	}
	p.status = s
	close(p.done)
	p.w.note("exit", p.pid)
	if p.ended != nil {
		p.ended(p)
	}
}

// die ends the program from outside.
func (p *program) die(s pidfd.Status) {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.exit(s)
}

// serve lets the prober see it.
func (p *program) serve() {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.serving = true
}

// speak keeps the worker's end of the channel, which the program closes when it ends.
func (p *program) speak() error {
	for _, x := range p.launch.Extra {
		if x.Variable != "GAPLESS_CHANNEL" {
			continue
		}
		f, err := packet.Dup(x.File, "worker's end")
		if err != nil {
			return err
		}
		if p.ch, err = channel.New(f); err != nil {
			return err
		}
		p.ended = func(p *program) { p.ch.Close() }
		return nil
	}
	return errors.New("the launch has no channel")
}

// env returns a variable of the program's environment.
func (p *program) env(name string) string {
	for _, kv := range p.launch.Env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// notify sends a message to the program's notify socket. The kernel tells that it came from the test's process.
func (p *program) notify(text string) {
	p.w.t.Helper()
	c, err := net.Dial("unixgram", p.env("NOTIFY_SOCKET"))
	if err != nil {
		p.w.t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(text)); err != nil {
		p.w.t.Fatal(err)
	}
}
