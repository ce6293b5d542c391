// Package relay carries connections that arrived where nobody serves: handshakes that ended on a lane after its worker
// had left it, and the queues of dead workers. It runs in a process of its own, so that no exit of a master cuts what
// it carries.
//
// The master sends orders over a packet connection (Client); Run is the process's body. Each connection that the relay
// takes over is given to the generation that serves: into its handoff queue where there is one, so that the worker
// sees the client's own address; else through a new connection to the same address, which the kernel steers to an
// active lane, with bytes copied both ways. No byte of a client is read before its connection has somewhere to go.
//
// A relay can also serve a listening socket by itself: that of the preview address, whose connections it carries to the
// public address over connections that are marked by their source, for the kernel to steer them elsewhere.
//
// A relay drains like a worker: told to, it takes nothing more and ends when its last connection has. The end of the
// packet connection, which means that master and parent are gone, is such an order too.
package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"gapless/internal/handoff"
	"gapless/internal/packet"

	"go.uber.org/zap"
)

// dialTimeout bounds how long a connection waits for a place in the address's own queue.
const dialTimeout = 10 * time.Second

// drainGrace is how long orders that had been sent before Config.Drain are looked for.
const drainGrace = 50 * time.Millisecond

// statusInterval is the least time between two reports to the master.
const statusInterval = time.Second

// orderKind says what an order is about.
type orderKind string

const (
	orderSweep orderKind = "sweep" // files: listening sockets; accept what waits there
	orderCarry orderKind = "carry" // files: accepted connections that nobody has read from
	orderServe orderKind = "serve" // files: listening sockets; accept until the drain
	orderQueue orderKind = "queue" // files: the sending end of the serving generation's handoff queue, or none
	orderDrain orderKind = "drain"
)

// order is what the master sends.
type order struct {
	Kind   orderKind `json:"kind"`
	Target Target    `json:"target,omitzero"`
}

// Target is where connections were meant to go.
type Target struct {
	Listener string `json:"listener"` // the address's name, as in LISTEN_FDNAMES
	Network  string `json:"network"`  // tcp or unix
	Addr     string `json:"addr"`     // IP:PORT, a wildcard included, or a path
	// Source is the IP address to dial from, Class the IPv6 traffic class to dial with, if they matter. A connection to
	// such a target is never given into a handoff queue.
	Source string `json:"source,omitempty"`
	Class  int    `json:"class,omitempty"`
}

// Status is what the relay reports when it has changed, at most once a second, and before it ends.
type Status struct {
	Open   int `json:"open"`   // connections being carried
	Taken  int `json:"taken"`  // connections taken over so far
	Handed int `json:"handed"` // of these, given into a handoff queue
	Failed int `json:"failed"` // of these, reset as nobody took them
}

// Config is what Run needs. Only Orders is required.
type Config struct {
	Orders *packet.Conn // the master's orders; Run closes it
	Logger *zap.Logger  // default: none
	// Drain, when closed, is an order to drain that comes another way, as by a signal. Default: none.
	Drain <-chan struct{}
}

// relay is the state of one Run.
type relay struct {
	orders *packet.Conn
	log    *zap.Logger
	dialer net.Dialer

	acceptors sync.WaitGroup
	carriers  sync.WaitGroup
	draining  chan struct{} // closed when nothing more is taken
	changed   chan struct{} // has room for one; never closed

	mu     sync.Mutex
	queue  *handoff.Sender // nil while the serving generation takes no handoffs
	status Status
}

// Run carries connections until it is told to drain, or the orders end, and all of them are done; it then returns nil.
// When ctx ends first, it cuts what is left and returns ctx's error.
func Run(ctx context.Context, cfg Config) error {
	r := &relay{orders: cfg.Orders, log: cfg.Logger, draining: make(chan struct{}), changed: make(chan struct{}, 1), dialer: net.Dialer{Timeout: dialTimeout}}
	// A carried connection is a worker's to keep alive or not, as a direct one would be.
	r.dialer.SetMultipathTCP(false)
	if r.log == nil {
		r.log = zap.NewNop()
	}
	running, end := context.WithCancel(ctx)
	var helpers sync.WaitGroup
	helpers.Go(func() { r.report(running) })
	stop := context.AfterFunc(ctx, func() { _ = r.orders.SetReadDeadline(time.Unix(1, 0)) })
	helpers.Go(func() {
		select {
		case <-cfg.Drain:
			// Not at once: connections may wait in orders that were sent before.
			_ = r.orders.SetReadDeadline(time.Now().Add(drainGrace))
		case <-running.Done():
		}
	})

	err := r.obey(ctx)
	close(r.draining)

	r.acceptors.Wait() // they start carriers
	r.carriers.Wait()
	stop()
	end()
	helpers.Wait()
	r.setQueue(nil)
	return errors.Join(err, ctx.Err(), r.orders.Close())
}

// obey takes orders until one says drain or none can come any more.
func (r *relay) obey(ctx context.Context) error {
	for {
		var o order
		files, err := r.orders.Receive(&o)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, os.ErrDeadlineExceeded):
			packet.CloseAll(files)
			return nil
		case errors.Is(err, syscall.ECONNRESET):
			// The master has closed its end with reports unread. What it had sent before can still be received, then the end.
			continue
		case errors.Is(err, packet.ErrTruncated):
			r.log.Warn("order lost: too few descriptors are free", zap.Error(err))
			continue
		case err != nil:
			return fmt.Errorf("relay: receive an order: %w", err)
		}
		switch o.Kind {
		case orderSweep:
			for _, f := range files {
				r.sweep(ctx, o.Target, f)
			}
			packet.CloseAll(files)
		case orderServe:
			for _, f := range files {
				r.serve(ctx, o.Target, f)
			}
		case orderCarry:
			for _, f := range files {
				r.carry(ctx, o.Target, f)
			}
		case orderQueue:
			r.changeQueue(files)
		case orderDrain:
			packet.CloseAll(files)
			return nil
		default:
			packet.CloseAll(files)
			r.log.Warn("order of an unknown kind", zap.String("kind", string(o.Kind)))
		}
	}
}

// sweep accepts what waits at a listening socket now, and no more: by the time that it gets to it the socket may have
// become an active one again, where its own connections to the address would arrive without end.
func (r *relay) sweep(ctx context.Context, target Target, listener *os.File) {
	for range Waiting(listener) {
		f, err := accept(listener)
		if err != nil {
			// The master sees what still waits there and orders again.
			r.log.Warn("cannot accept what waits at a free lane", zap.String("listener", target.Listener), zap.Error(err))
			return
		}
		if f == nil {
			return
		}
		r.carry(ctx, target, f)
	}
}

// carry takes over a connection. It owns f.
func (r *relay) carry(ctx context.Context, target Target, f *os.File) {
	r.count(func(s *Status) { s.Taken++; s.Open++ })
	r.carriers.Go(func() {
		defer r.count(func(s *Status) { s.Open-- })
		client, err := fileConn(f)
		if err != nil {
			r.count(func(s *Status) { s.Failed++ })
			r.log.Warn("cannot carry a connection", zap.String("listener", target.Listener), zap.Error(err))
			return
		}
		if target.Source == "" && r.hand(client, target.Listener) {
			r.count(func(s *Status) { s.Handed++ })
			return
		}
		r.carryTo(ctx, target, client)
	})
}

// carryTo carries a connection over one of the relay's own. It returns when it has ended.
func (r *relay) carryTo(ctx context.Context, target Target, client stream) {
	server, err := r.dial(ctx, target)
	if err != nil {
		reset(client)
		r.count(func(s *Status) { s.Failed++ })
		r.log.Warn("nobody takes a carried connection: it is reset", zap.String("listener", target.Listener), zap.Error(err))
		return
	}
	join(ctx, client, server)
}

// hand gives a connection into the handoff queue. If that cannot be, it is still the caller's.
func (r *relay) hand(client stream, listener string) bool {
	r.mu.Lock()
	defer r.mu.Unlock() // a queue must not be closed while it is sent to
	if r.queue == nil {
		return false
	}
	raw, err := client.SyscallConn()
	if err != nil {
		return false
	}
	if err := r.queue.Send(raw, listener, nil); err != nil {
		r.log.Debug("handoff queue does not take a connection: it is relayed", zap.String("listener", listener), zap.Error(err))
		return false
	}
	_ = client.Close() // close(2) alone: the connection lives on in the queue
	return true
}

func (r *relay) dial(ctx context.Context, target Target) (stream, error) {
	addr := target.Addr
	if target.Source != "" {
		d := r.dialer
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(target.Source)}
		d.Control = func(_, _ string, c syscall.RawConn) error { return markSocket(c, target.Class) }
		return dialOne(ctx, &d, target.Network, addr)
	}
	if ap, err := netip.ParseAddrPort(addr); target.Network == "tcp" && err == nil && ap.Addr().IsUnspecified() {
		// A dual-stack socket takes IPv4 as well; one that is bound to IPv6 only is tried second, below.
		addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), ap.Port()).String()
		if ap.Addr().Is6() {
			if c, err := dialOne(ctx, &r.dialer, target.Network, netip.AddrPortFrom(netip.IPv6Loopback(), ap.Port()).String()); err == nil {
				return c, nil
			}
		}
	}
	return dialOne(ctx, &r.dialer, target.Network, addr)
}

func dialOne(ctx context.Context, d *net.Dialer, network, addr string) (stream, error) {
	c, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	s, ok := c.(stream)
	if !ok {
		return nil, errors.Join(fmt.Errorf("a %T cannot be closed by halves", c), c.Close())
	}
	return s, nil
}

// changeQueue takes the sending end of another handoff queue, or of none.
func (r *relay) changeQueue(files []*os.File) {
	if len(files) != 1 {
		packet.CloseAll(files)
		r.setQueue(nil)
		return
	}
	sender, err := handoff.NewSender(files[0])
	if err != nil {
		r.log.Warn("handoff queue cannot be used: connections are relayed", zap.Error(err))
	}
	r.setQueue(sender)
}

func (r *relay) setQueue(next *handoff.Sender) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.queue != nil {
		_ = r.queue.Close()
	}
	r.queue = next
}

// count changes the status, and has it reported.
func (r *relay) count(change func(*Status)) {
	r.mu.Lock()
	change(&r.status)
	r.mu.Unlock()
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// report tells the master about changes until ctx ends, and then once more.
func (r *relay) report(ctx context.Context) {
	send := func() {
		r.mu.Lock()
		status := r.status
		r.mu.Unlock()
		// A master that does not read must not hold up the relay; the next report says it all again.
		_ = r.orders.SetWriteDeadline(time.Now().Add(statusInterval))
		_ = r.orders.Send(status)
	}
	defer send()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.changed:
		}
		send()
		select {
		case <-ctx.Done():
			return
		case <-time.After(statusInterval):
		}
	}
}
