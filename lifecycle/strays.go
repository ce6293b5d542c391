package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"

	"gapless/internal/handoff"
	"gapless/internal/packet"
	"gapless/internal/relay"
	"gapless/upgrade"
	"gapless/workerpool"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// relayVerb is the hidden verb that runs RunRelay; relayVariable tells it the descriptor of its orders.
const (
	relayVerb     = "relay"
	relayVariable = "GAPLESS_RELAY_FD"
)

// strays passes on connections that arrive at lanes that nobody serves: their handshake was under way when the lane left
// the program, or their worker died before it accepted them. A generation that takes handoffs gets them through its
// queue, as they are; for others a relay, a process of its own, carries them until they end.
type strays struct {
	m     *master
	lanes chan *upgrade.Lane

	mu    sync.Mutex
	known map[*upgrade.Lane]bool // waiting in lanes

	client *relay.Client // run's; nil: no relay has been needed yet
}

func newStrays(m *master) *strays {
	return &strays{m: m, lanes: make(chan *upgrade.Lane, 64), known: make(map[*upgrade.Lane]bool)}
}

// add is the watcher's callback: it must not block. A lane that is not taken now is reported again.
func (s *strays) add(l *upgrade.Lane, _ int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known[l] {
		return
	}
	select {
	case s.lanes <- l:
		s.known[l] = true
	default:
	}
}

// run passes on until ctx ends.
func (s *strays) run(ctx context.Context) error {
	defer func() {
		if s.client != nil {
			s.client.Close()
		}
	}()
	for {
		select {
		case l := <-s.lanes:
			s.mu.Lock()
			delete(s.known, l)
			s.mu.Unlock()
			if err := s.empty(l); err != nil {
				s.m.log.Warn("Strays wait", zap.String("lane", l.Name()), zap.Error(err))
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// empty passes on what waits at a lane.
func (s *strays) empty(l *upgrade.Lane) error {
	queue := s.m.queues.target()
	if queue == nil {
		return s.sweep(l)
	}
	f, err := packet.Dup(queue, "handoff")
	if err != nil {
		return err
	}
	sender, err := handoff.NewSender(f)
	if err != nil {
		return err
	}
	defer sender.Close()
	for l.State() == upgrade.LaneFree {
		conn, err := l.Accept()
		if conn == nil {
			return err
		}
		raw, err := conn.SyscallConn()
		if err == nil {
			err = sender.Send(raw, l.Address().Name, nil)
		}
		if err != nil { // the queue is full: this one goes the other way
			err = s.carry(l, conn)
		}
		conn.Close()
		if err != nil {
			return err
		}
		s.m.log.Debug("stray passed on", zap.String("lane", l.Name()))
	}
	return nil
}

func target(l *upgrade.Lane) relay.Target {
	a := l.Bound()
	return relay.Target{Listener: a.Name, Network: a.Network, Addr: a.Addr}
}

// sweep has the relay accept and carry what waits at a lane.
func (s *strays) sweep(l *upgrade.Lane) error {
	return s.withRelay(func(c *relay.Client) error { return c.Sweep(target(l), l.File()) })
}

func (s *strays) carry(l *upgrade.Lane, conn *os.File) error {
	return s.withRelay(func(c *relay.Client) error { return c.Carry(target(l), conn) })
}

// withRelay orders the relay, and starts one if there is none or the last one has gone.
func (s *strays) withRelay(order func(*relay.Client) error) error {
	if s.client != nil {
		if err := order(s.client); err == nil {
			return nil
		}
		s.client.Close()
		s.client = nil
	}
	client, err := s.m.startRelay(relayVerb)
	if err != nil {
		return err
	}
	s.client = client
	return order(client)
}

// startRelay starts a relay that status calls by role.
func (m *master) startRelay(role string) (*relay.Client, error) {
	mine, theirs, err := packet.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	conn, err := packet.New(mine)
	if err != nil {
		return nil, err
	}
	rel := m.pinned.Load().release
	err = m.pool.StartHelper(role, workerpool.Launch{
		Path: "/proc/self/exe", Args: []string{"gapless", relayVerb}, Dir: rel.dir,
		Env:   workerEnviron(os.Environ(), rel.dirName),
		Extra: []workerpool.Extra{{Variable: relayVariable, File: theirs}},
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start a relay: %w", err), conn.Close())
	}
	return relay.NewClient(conn), nil
}

// RunRelay is the body of a relay process. The stop signal drains it.
func RunRelay(log *zap.Logger) error {
	n, err := strconv.Atoi(os.Getenv(relayVariable))
	if err != nil {
		return errors.New("a relay is started by gapless run and not by hand")
	}
	unix.CloseOnExec(n)
	orders, err := packet.New(os.NewFile(uintptr(n), "orders"))
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	drain := make(chan struct{})
	go func() { // ends with the process
		<-stop
		close(drain)
	}()
	return relay.Run(context.Background(), relay.Config{Orders: orders, Logger: log, Drain: drain})
}
