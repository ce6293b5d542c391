package lifecycle

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"gapless/internal/control"
	"gapless/internal/packet"
)

// linkFile is the link's name among the files of tableflip, linkVariable tells the first master its number.
const (
	linkFile     = "link"
	linkVariable = "GAPLESS_LINK_FD"
	// ackedKept is how many numbers of what has been acted on are remembered: more than can be unheard at a time.
	ackedKept = 256
	// linkPatience bounds a send.
	linkPatience = time.Second
)

// linkMessage is a packet on the link. From the parent: a numbered signal or command. From a master: that it acts on one
// (Ack), what came of it (Result), or what happens (Event). The answer to a command for the status is a file.
type linkMessage struct {
	Seq     uint64          `json:"seq,omitempty"`
	Signal  syscall.Signal  `json:"signal,omitempty"`
	Command *command        `json:"command,omitempty"`
	Ack     bool            `json:"ack,omitempty"`
	Result  *control.Result `json:"result,omitempty"`
	Status  bool            `json:"status,omitempty"`
	Event   *control.Event  `json:"event,omitempty"`
}

// command is what only the control socket can ask for; the rest are signals.
type command struct {
	Verb    verb          `json:"verb"`
	Workers int           `json:"workers,omitempty"`
	Percent int           `json:"percent,omitempty"`
	Stage   *stageRequest `json:"stage,omitempty"`
}

// stageRequest is how an upgrade is staged, or what becomes of a staged one when it is promoted.
type stageRequest struct {
	Hold    bool           `json:"hold,omitempty"`
	Weights []int          `json:"weights,omitempty"`
	Bake    time.Duration  `json:"bake,omitempty"`
	Keep    *time.Duration `json:"keep,omitempty"` // nil: as configured
	Verify  verification   `json:"verify,omitzero"`
	Preview string         `json:"preview,omitempty"` // [NAME=]ADDR
}

type verb string

const (
	verbStatus  verb = "status"
	verbUpgrade verb = "upgrade"
	verbReload  verb = "reload"
	verbScale   verb = "scale"
	verbHealth  verb = "health" // asked for the service manager's watchdog

	verbShift    verb = "shift"
	verbPromote  verb = "promote"
	verbAbort    verb = "abort"
	verbRollback verb = "rollback"
)

// words is the verb in a sentence.
func (v verb) words() string {
	if v == verbRollback {
		return "roll back"
	}
	return string(v)
}

// masterLink is a master's end of the link. All masters share the descriptor: only the one in charge reads.
type masterLink struct {
	conn    *packet.Conn
	signals chan linkMessage // to the one who governs
	gone    chan struct{}    // closed when the parent is no more

	sending sync.Mutex

	mu     sync.Mutex
	acked  []uint64      // by this master and those before it, the latest last; the parent may not have heard yet
	paused chan struct{} // non-nil while frozen; closed to go on
	seen   map[uint64]bool
}

func newMasterLink(conn *packet.Conn) *masterLink {
	return &masterLink{conn: conn, signals: make(chan linkMessage), gone: make(chan struct{}), seen: make(map[uint64]bool)}
}

// run reads until ctx ends.
func (l *masterLink) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = l.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for ctx.Err() == nil {
		l.mu.Lock()
		paused := l.paused
		l.mu.Unlock()
		if paused != nil {
			select {
			case <-paused:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		var m linkMessage
		files, err := l.conn.Receive(&m)
		packet.CloseAll(files)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue // paused
		case lost(err):
			continue // unacknowledged: the parent repeats it to the next master, which may understand it
		case err != nil:
			close(l.gone)
			<-ctx.Done()
			return ctx.Err()
		case l.known(m):
			l.send(linkMessage{Seq: m.Seq, Ack: true}) // the first one came too late
			continue
		case l.seen[m.Seq]:
			continue // the parent repeats what no master acknowledged, also what nobody had read yet
		}
		if !m.question() { // which may be asked twice, and comes for ever
			l.seen[m.Seq] = true
		}
		select {
		case l.signals <- m:
		case <-ctx.Done():
			return ctx.Err() // unacknowledged: the parent repeats it to the next master
		}
	}
	return ctx.Err()
}

// lost tells whether one packet could not be taken in, and the link is in order: what comes next is to be heard.
func lost(err error) bool {
	return errors.Is(err, packet.ErrUnreadable) || errors.Is(err, packet.ErrTruncated)
}

// pause leaves what the parent sends from now on to the next master; resume takes that back.
func (l *masterLink) pause() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.paused == nil {
		l.paused = make(chan struct{})
		_ = l.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

func (l *masterLink) resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.paused != nil {
		// Here, under the lock, and not by the reader, which may not have noticed the pause, or notice the next one late.
		_ = l.conn.SetReadDeadline(time.Time{})
		close(l.paused)
		l.paused = nil
	}
}

// ack tells the parent that a signal has been acted on.
func (l *masterLink) ack(m linkMessage) {
	l.remember(m.Seq)
	l.send(linkMessage{Seq: m.Seq, Ack: true})
}

// remember notes what has been acted on, and by recall the next master learns it: the parent repeats to it what it has not
// heard to be acted on, and that must not happen twice.
func (l *masterLink) remember(seqs ...uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked = append(l.acked, seqs...)
	l.acked = slices.Clone(l.acked[max(0, len(l.acked)-ackedKept):])
}

func (l *masterLink) recall() []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.acked)
}

// known tells whether a message needs no acting on any more.
func (l *masterLink) known(m linkMessage) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Contains(l.acked, m.Seq)
}

// answer tells it what came of a command.
func (l *masterLink) answer(seq uint64, r control.Result) {
	l.remember(seq)
	l.send(linkMessage{Seq: seq, Ack: true, Result: &r})
}

// send bounds what a parent that does not read can cost. Without a parent there is nobody to tell.
func (l *masterLink) send(m linkMessage, files ...*os.File) {
	l.sending.Lock()
	defer l.sending.Unlock()
	_ = l.conn.SetWriteDeadline(time.Now().Add(linkPatience))
	_ = l.conn.Send(m, files...)
}
