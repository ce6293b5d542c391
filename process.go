package gapless

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"gapless/internal/channel"
	"gapless/internal/handoff"
)

// process is what a worker has once: its sockets, its channel, its draining.
type process struct {
	env     environ
	envErr  error // wrong variables or descriptors: every Serve and Listen returns it
	channel *channel.Conn
	queue   *handoff.Receiver
	tickets *tickets // nil: there are none

	ticketsOnce sync.Once // begins to look for rotated keys

	draining chan struct{} // closed when draining begins; order is set before
	order    order
	begin    sync.Once

	stop     chan struct{} // closed when an order to stop has come, draining or not
	stopOnce sync.Once

	readyOnce sync.Once
	readyErr  error

	mu        sync.Mutex
	listeners []*inherited
	servers   []*server
	drains    bool      // somebody heeds the order to drain
	undrained int       // calls of Serve that have not drained yet
	drained   sync.Cond // on mu: undrained fell

	// The goroutines of the process itself.
	ctx     context.Context
	quit    context.CancelFunc
	loops   sync.WaitGroup
	receive chan struct{} // closed when nothing is received from the queue any more
}

// current is the process that runs. It is a package variable because what it
// holds, the environment, descriptors and signals, exists once per process.
var current = sync.OnceValue(func() *process {
	return newProcess(os.Getpid(), os.LookupEnv, os.Unsetenv)
})

func newProcess(pid int, get func(string) (string, bool), unset func(string) error) *process {
	p := &process{draining: make(chan struct{}), stop: make(chan struct{}), receive: make(chan struct{})}
	p.drained.L = &p.mu
	var errs []error
	p.env, p.envErr = readEnviron(pid, get, unset)
	errs = append(errs, p.envErr)
	var err error
	if p.env.channel >= 0 {
		if p.channel, err = channel.New(inheritedFile(p.env.channel, envChannel)); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", envChannel, err))
		} else {
			// Before a socket is opened: that puts it into an epoll set, which is a sign of readiness in others. A master
			// that does not hear it is gone, which the channel's end will tell.
			_ = p.channel.Send(channel.Hello{Version: channel.Version, PID: os.Getpid()}, nil)
		}
	}
	for i, name := range p.env.names {
		l, err := openListener(firstFD+i, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p.listeners = append(p.listeners, l)
	}
	if p.env.handoff >= 0 {
		if p.queue, err = handoff.NewReceiver(inheritedFile(p.env.handoff, envHandoff)); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", envHandoff, err))
		}
	}
	if p.env.tickets >= 0 {
		if p.tickets, err = openTickets(inheritedFile(p.env.tickets, envTickets)); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", envTickets, err))
		}
	}
	if p.envErr = errors.Join(errs...); p.envErr != nil {
		p.envErr = fmt.Errorf("gapless: what the manager passed cannot be used: %w", p.envErr)
	}
	p.start()
	return p
}

// inheritedFile takes over a descriptor that was inherited for us alone.
func inheritedFile(fd int, name string) *os.File {
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), strings.ToLower(name))
}

// start begins to listen for orders.
func (p *process) start() {
	p.ctx, p.quit = context.WithCancel(context.Background())
	if p.channel != nil {
		p.loops.Go(func() { p.obey(p.ctx) })
	}
}

// heed notes, with mu held, that somebody heeds the order to drain. From then
// on the signals are such an order: a program that only asks for its
// generation still ends by them at once.
func (p *process) heed() {
	if p.drains {
		return
	}
	p.drains = true
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	p.loops.Go(func() {
		defer signal.Stop(signals)
		select {
		case <-signals:
			// The next one finds the default action: it ends the process.
			signal.Stop(signals)
			p.orderStop()
		case <-p.ctx.Done():
		}
	})
}

// end waits for the goroutines of the process. Servers must have drained.
func (p *process) end() {
	p.quit()
	p.orderStop()
	p.loops.Wait()
	if p.channel != nil {
		_ = p.channel.Close()
	}
	if p.queue != nil {
		_ = p.queue.Close()
	}
	if p.order.queue != nil {
		_ = p.order.queue.Close()
	}
	if p.tickets != nil {
		_ = p.tickets.f.Close()
	}
}

// obey waits for the order to drain on the channel.
func (p *process) obey(ctx context.Context) {
	for {
		m, f, err := p.channel.Receive(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			if errors.Is(err, channel.ErrPacket) {
				continue
			}
			// At its end nobody is left who could take over.
			p.orderStop()
			return
		}
		d, ok := m.(channel.Drain)
		if !ok {
			if f != nil {
				_ = f.Close()
			}
			continue
		}
		o := order{from: time.Now(), deadline: d.Deadline, spread: d.Spread, stop: d.Stop}
		if f != nil {
			if d.Handoff && !d.Stop {
				// Without a queue the drain is a slower one, not a failed one.
				o.queue, _ = handoff.NewSender(f)
			} else {
				_ = f.Close()
			}
		}
		p.orderDrain(o)
		if d.Stop {
			p.orderStop()
		}
	}
}

// orderDrain begins to drain; only the first order counts.
func (p *process) orderDrain(o order) {
	first := false
	p.begin.Do(func() {
		first = true
		p.order = o
		close(p.draining)
	})
	if !first {
		if o.queue != nil {
			_ = o.queue.Close()
		}
		return
	}
	if p.channel != nil {
		p.loops.Go(func() { p.report(p.ctx) })
	}
}

// orderStop begins to drain with nobody to take over, or shortens a drain that
// has begun.
func (p *process) orderStop() {
	p.stopOnce.Do(func() { close(p.stop) })
	p.orderDrain(order{from: time.Now(), stop: true})
}

func (p *process) isDraining() bool { return closed(p.draining) }
func (p *process) stopping() bool   { return closed(p.stop) }

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// report tells the master how the drain goes, at once and then each second.
// The last report is exit's.
func (p *process) report(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		p.mu.Lock()
		done := p.undrained == 0
		if !done {
			p.sendStatus()
		}
		p.mu.Unlock()
		if done {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// sendStatus is called with mu held. A master that does not listen misses it.
func (p *process) sendStatus() {
	var st channel.Status
	now := time.Now()
	for _, s := range p.servers {
		st.OldestMS = max(st.OldestMS, s.oldest(now).Milliseconds())
		st.InFlight += s.requests()
		st.Connections += s.count()
		st.Handed += int(s.handed.Load())
		st.Bytes += s.look()
	}
	_ = p.channel.Send(st, nil)
}

// pick chooses the listeners that addr asks for and opens one if there is no
// manager. See Serve for the rules.
func (p *process) pick(addr, fallback string) (ls []*inherited, err error) {
	if p.envErr != nil {
		return nil, p.envErr
	}
	name, at := splitAddr(addr)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.listeners) == 0 {
		if at == "" {
			at = fallback
		}
		l, err := listen(at)
		if err != nil {
			return nil, fmt.Errorf("gapless: listen on %q: %w", at, err)
		}
		return []*inherited{{Listener: l, name: name, taken: true}}, nil
	}
	take := func(want func(*inherited) bool) bool {
		for _, l := range p.listeners {
			if !l.taken && want(l) {
				l.taken = true
				ls = append(ls, l)
			}
		}
		return len(ls) > 0
	}
	switch {
	case name != "":
		take(func(l *inherited) bool { return l.name == name })
	case at != "" && take(func(l *inherited) bool { return l.name == at }):
	case at != "" && take(func(l *inherited) bool { return matches(l.Addr(), at) }):
	default:
		var first *inherited
		take(func(l *inherited) bool {
			if first == nil {
				first = l
			}
			return l.name == first.name // one name may have several sockets
		})
	}
	if len(ls) == 0 {
		var all []string
		for _, l := range p.listeners {
			all = append(all, fmt.Sprintf("%s (%s)", l.name, l.Addr()))
		}
		return nil, fmt.Errorf("gapless: no listener is left for %q: the manager passed %s; name each by NAME=ADDRESS", addr, strings.Join(all, ", "))
	}
	return ls, nil
}

// serving notes that somebody waits for connections of l, and says that the
// worker is ready once that is so for every listener that was passed.
func (p *process) serving(l *inherited) {
	p.mu.Lock()
	l.serving = true
	all := true
	for _, l := range p.listeners {
		all = all && l.serving
	}
	p.mu.Unlock()
	if all {
		_ = p.ready() // the next call of Ready returns the error
	}
}

// ready says, once, that the worker serves, and begins to take connections
// from the queue.
func (p *process) ready() error {
	p.readyOnce.Do(func() {
		p.mu.Lock()
		drains, takes := p.drains, false
		for _, s := range p.servers {
			takes = takes || !s.tls && p.queue != nil
		}
		p.mu.Unlock()
		if takes {
			p.loops.Go(p.receiveLoop)
		} else {
			close(p.receive)
		}
		switch {
		case p.channel != nil:
			p.readyErr = p.channel.Send(channel.Ready{Version: channel.Version, PID: os.Getpid(), Drain: drains, Handoff: takes}, nil)
		case p.env.notify != "":
			p.readyErr = notify(p.env.notify, "READY=1")
		}
		if p.readyErr != nil {
			p.readyErr = fmt.Errorf("gapless: say that the worker is ready: %w", p.readyErr)
		}
	})
	return p.readyErr
}

// enter makes s one of the process's servers.
func (p *process) enter(s *server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.servers = append(p.servers, s)
	p.heed()
	p.undrained++
}

// exit notes that a server is done, and then, if it drained, waits until all are.
func (p *process) exit(wait bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.undrained--
	p.drained.Broadcast()
	if wait && p.undrained == 0 && p.channel != nil {
		p.sendStatus()
	}
	for wait && p.undrained > 0 {
		p.drained.Wait()
	}
}

// leave takes s out after it failed.
func (p *process) leave(s *server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, t := range p.servers {
		if t == s {
			p.servers = append(p.servers[:i:i], p.servers[i+1:]...)
			break
		}
	}
}
