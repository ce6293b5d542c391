// Package channel is the conversation between a master and one worker: JSON
// packets over a seqpacket pair, as docs/protocol.md states it. Both sides
// use it.
//
// Invariants: sending never blocks, so a worker that hangs cannot hold up its
// master; what this version does not know (types, fields) is passed over, so
// that versions may meet.
package channel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"gapless/internal/seqpacket"
)

const (
	// Version is the version of the protocol that `ready` carries.
	Version = 1
	// MaxPacket is the size of the largest packet in bytes.
	MaxPacket = 64 << 10
)

// ErrPacket is wrapped by the errors for packets that cannot be read. The
// channel can still be used after one.
var ErrPacket = errors.New("bad channel packet")

// ErrUnknownType is what Decode returns for a packet that is well-formed and
// of a type that this version does not know. Receive passes over those.
var ErrUnknownType = errors.New("unknown packet type")

// Message is one of Adapter, Hello, Ready, Status and Drain.
type Message interface{ kind() string }

// Hello is a worker's first word, before it touches its sockets: it will say Ready by itself, so that nothing else, such
// as a socket that it has opened and does not serve yet, is a sign of it.
type Hello struct {
	Version int `json:"version"`
	PID     int `json:"pid"`
}

// Adapter is what the code says that gapless has put into a server, before its Hello if it is in force.
type Adapter struct {
	Name   string `json:"name"`             // what it has found: the server, its version
	Reason string `json:"reason,omitempty"` // why it is not in force; "": it is
}

// Ready is what a worker says once all its parts serve.
type Ready struct {
	Version int  `json:"version"`
	PID     int  `json:"pid"`
	Drain   bool `json:"drain"`   // wants the order to drain over the channel, not the stop signal
	Handoff bool `json:"handoff"` // takes connections from the generation's queue
}

// Status is what a draining worker says at most once a second.
type Status struct {
	InFlight    int   `json:"in_flight"`   // requests being answered
	Connections int   `json:"connections"` // connections open
	Handed      int   `json:"handed"`      // connections given away so far
	Bytes       int64 `json:"bytes"`       // moved over connections, either way, since the drain began
	// OldestMS is the age of the oldest request in milliseconds; 0: there is none, or the worker cannot tell.
	OldestMS int64 `json:"oldest_ms,omitempty"`
}

// Drain is the master's order to finish. If Handoff is set, its packet
// carries the sending end of the queue to give idle connections to.
type Drain struct {
	Deadline time.Duration // from the packet; 0 = none. In milliseconds on the wire, as are the others
	Extra    time.Duration // granted beyond Deadline while bytes still move
	Spread   time.Duration // over which the close frames of WebSockets are spread before Deadline
	Handoff  bool
	Stop     bool // nobody takes over: idle connections are waited for a second only
}

func (Adapter) kind() string { return "adapter" }
func (Hello) kind() string   { return "hello" }
func (Ready) kind() string   { return "ready" }
func (Status) kind() string  { return "status" }
func (Drain) kind() string   { return "drain" }

type drainWire struct {
	DeadlineMS int64 `json:"deadline_ms"`
	ExtraMS    int64 `json:"extra_ms"`
	SpreadMS   int64 `json:"spread_ms"`
	Handoff    bool  `json:"handoff"`
	Stop       bool  `json:"stop"`
	// Queue is the inode of the socket that the packet carries, for runtimes that do not tell which descriptor they got.
	Queue uint64 `json:"queue,omitempty"`
}

// Encode returns the packet for m.
func Encode(m Message) ([]byte, error) { return encode(m, 0) }

// encode returns the packet for m, which carries the file of that inode; 0: none.
func encode(m Message, inode uint64) ([]byte, error) {
	var v any
	switch m := m.(type) {
	case Adapter:
		v = struct {
			Type string `json:"type"`
			Adapter
		}{m.kind(), m}
	case Hello:
		v = struct {
			Type string `json:"type"`
			Hello
		}{m.kind(), m}
	case Ready:
		v = struct {
			Type string `json:"type"`
			Ready
		}{m.kind(), m}
	case Status:
		v = struct {
			Type string `json:"type"`
			Status
		}{m.kind(), m}
	case Drain:
		v = struct {
			Type string `json:"type"`
			drainWire
		}{m.kind(), drainWire{m.Deadline.Milliseconds(), m.Extra.Milliseconds(), m.Spread.Milliseconds(), m.Handoff, m.Stop, inode}}
	default:
		return nil, fmt.Errorf("encode channel packet %T: %w", m, ErrUnknownType)
	}
	return json.Marshal(v)
}

// Oldest is OldestMS as a duration.
func (s Status) Oldest() time.Duration { return duration(s.OldestMS) }

// maxMS keeps a duration that came in milliseconds within time.Duration.
const maxMS = int64(1<<63-1) / int64(time.Millisecond)

func duration(ms int64) time.Duration {
	return time.Duration(min(max(ms, 0), maxMS)) * time.Millisecond
}

// Decode reads one packet.
func Decode(p []byte) (Message, error) {
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(p, &head); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPacket, err)
	}
	var err error
	var m Message
	switch head.Type {
	case "adapter":
		var v Adapter
		err = json.Unmarshal(p, &v)
		m = v
	case "hello":
		var v Hello
		err = json.Unmarshal(p, &v)
		m = v
	case "ready":
		var v Ready
		err = json.Unmarshal(p, &v)
		m = v
	case "status":
		var v Status
		err = json.Unmarshal(p, &v)
		m = v
	case "drain":
		var v drainWire
		err = json.Unmarshal(p, &v)
		m = Drain{duration(v.DeadlineMS), duration(v.ExtraMS), duration(v.SpreadMS), v.Handoff, v.Stop}
	default:
		return nil, fmt.Errorf("decode channel packet %q: %w", head.Type, ErrUnknownType)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w", ErrPacket, head.Type, err)
	}
	return m, nil
}

// Pair makes the two ends of a channel. The master keeps one and passes the
// other to the worker.
func Pair() (master, worker *os.File, err error) { return seqpacket.Pair(0) }

// Conn is one end of a channel. One goroutine may receive while others send.
type Conn struct{ c *seqpacket.Conn }

// New takes over f, one end of a channel; it closes f if it fails.
func New(f *os.File) (*Conn, error) {
	c, err := seqpacket.New(f)
	if err != nil {
		return nil, fmt.Errorf("channel: %w", err)
	}
	return &Conn{c}, nil
}

// Send sends m, with f if that is not nil; f stays the caller's. It never
// blocks: seqpacket.ErrFull means that the other side does not read.
func (c *Conn) Send(m Message, f *os.File) error {
	p, err := encode(m, inodeOf(f))
	if err != nil {
		return err
	}
	if f == nil {
		err = c.c.Send(p, -1)
	} else {
		rc, rerr := f.SyscallConn()
		if rerr != nil {
			return fmt.Errorf("send %s over the channel: %w", m.kind(), rerr)
		}
		err = c.c.SendFrom(p, rc)
	}
	if err != nil {
		return fmt.Errorf("send %s over the channel: %w", m.kind(), err)
	}
	return nil
}

// Receive waits for the next message that this version knows. The file, if
// there is one, is the caller's. The error is io.EOF when the other side is
// gone, and ctx's cause when ctx ends first. After an error that wraps
// ErrPacket it may be called again.
func (c *Conn) Receive(ctx context.Context) (Message, *os.File, error) {
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	if ctx.Done() != nil {
		// Only this goroutine receives, so the deadline is its own to set.
		woken := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			_ = c.c.SetReadDeadline(time.Unix(1, 0))
			close(woken)
		})
		defer func() {
			if !stop() {
				<-woken
				_ = c.c.SetReadDeadline(time.Time{})
			}
		}()
	}
	for {
		// A master waits on thousands of channels: only a packet that is there takes a buffer, and one of its size.
		err := c.c.WaitReadable()
		var buf []byte
		var n int
		fd := -1
		if err == nil {
			size := c.c.Next()
			if size == 0 || size > MaxPacket {
				size = MaxPacket
			}
			buf = make([]byte, size)
			n, fd, err = c.c.TryReceive(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				continue // somebody else took it
			}
		}
		if errors.Is(err, seqpacket.ErrTruncated) {
			return nil, nil, fmt.Errorf("%w: %w", ErrPacket, err)
		}
		if err != nil {
			if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
				err = context.Cause(ctx)
			}
			return nil, nil, err
		}
		var f *os.File
		if fd >= 0 {
			f = os.NewFile(uintptr(fd), "channel-fd")
		}
		m, err := Decode(buf[:n])
		if err == nil {
			return m, f, nil
		}
		if f != nil {
			_ = f.Close()
		}
		if !errors.Is(err, ErrUnknownType) {
			return nil, nil, err
		}
	}
}

// Pending tells whether a packet waits to be received.
func (c *Conn) Pending() bool { return c.c.Pending() }

// File returns a duplicate of this end, to pass to the next master.
func (c *Conn) File() (*os.File, error) { return c.c.Dup() }

// Close closes this end. It wakes a blocked Receive with os.ErrClosed.
func (c *Conn) Close() error { return c.c.Close() }
