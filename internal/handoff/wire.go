// Package handoff is the queue through which the workers of one generation
// give open connections to those of another, as docs/protocol.md states it:
// a second accept queue, whose connections already stand between two requests.
//
// Invariants: a connection belongs to exactly one side at any time; sending
// never blocks, and a connection that could not be sent is still the sender's;
// a connection that was received is returned or closed.
package handoff

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	version = 1
	header  = 8

	// MaxName bounds the listener's name in a packet, in bytes.
	MaxName = 255
	// MaxPending bounds its pending bytes.
	MaxPending = 64 << 10
	maxPacket  = header + MaxName + MaxPending
)

// ErrPacket is wrapped by the errors for packets that are not as
// docs/protocol.md says.
var ErrPacket = errors.New("bad handoff packet")

// Append appends the packet for a connection of listener with these pending
// bytes to dst.
func Append(dst []byte, listener string, pending []byte) ([]byte, error) {
	if len(listener) > MaxName {
		return dst, fmt.Errorf("%w: the listener's name has %d bytes, at most %d are possible", ErrPacket, len(listener), MaxName)
	}
	if len(pending) > MaxPending {
		return dst, fmt.Errorf("%w: %d bytes are pending, at most %d are possible", ErrPacket, len(pending), MaxPending)
	}
	dst = append(dst, version, byte(len(listener)), 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(pending)))
	dst = append(dst, listener...)
	return append(dst, pending...), nil
}

// Parse reads a packet. pending is a part of p.
func Parse(p []byte) (listener string, pending []byte, err error) {
	if len(p) < header {
		return "", nil, fmt.Errorf("%w: %d bytes are too short", ErrPacket, len(p))
	}
	if p[0] != version {
		return "", nil, fmt.Errorf("%w: version %d, this is version %d", ErrPacket, p[0], version)
	}
	l, n := int(p[1]), binary.BigEndian.Uint32(p[4:])
	if n > MaxPending || len(p) != header+l+int(n) {
		return "", nil, fmt.Errorf("%w: %d bytes, the header says %d+%d+%d", ErrPacket, len(p), header, l, n)
	}
	return string(p[header : header+l]), p[header+l:], nil
}
