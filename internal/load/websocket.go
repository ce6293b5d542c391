package load

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"
)

// The part of RFC 6455 that a client needs who sends pings and heeds what it is told. Every server answers a ping by
// itself, whatever its application makes of messages, so pings measure any of them.

const (
	opClose byte = 8
	opPing  byte = 9
	opPong  byte = 10

	frameFinal  = 0x80
	frameMask   = 0x80
	maxControl  = 125       // bytes in a control frame
	maxMessage  = 128 << 20 // bytes in any frame that is skipped
	acceptMagic = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
)

var (
	errFrame  = errors.New("what the server sent is no WebSocket frame")
	errAccept = errors.New("the answer to the WebSocket handshake has a wrong Sec-WebSocket-Accept")
)

// composeHandshake writes the request that makes a connection a WebSocket.
func composeHandshake(s *Stream, host string, rng *rand.Rand, first *request) *send {
	var key [16]byte
	binary.LittleEndian.PutUint64(key[:], rng.Uint64())
	binary.LittleEndian.PutUint64(key[8:], rng.Uint64())
	r := &request{
		id: first.id + "-open", method: http.MethodGet, intended: first.intended, done: make(chan outcome, 1), handshake: true,
		key: base64.StdEncoding.EncodeToString(key[:]),
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "GET %s HTTP/1.1\r\nHost: %s\r\n%s: %s\r\n", s.Path, host, HeaderID, r.id)
	fmt.Fprintf(&text, "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n", r.key)
	_ = s.Header.Write(&text) // a bytes.Buffer takes everything
	text.WriteString("\r\n")
	return &send{requests: []*request{r}, pieces: [][]byte{text.Bytes()}}
}

// AskWebSocket makes headers those of a handshake, for whom wants to know whether a server opens WebSockets at all.
func AskWebSocket(h http.Header) {
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", "websocket")
	h.Set("Sec-WebSocket-Version", "13")
	h.Set("Sec-WebSocket-Key", base64.StdEncoding.EncodeToString(make([]byte, 16)))
}

// acceptOf is the answer to the key of a handshake.
func acceptOf(key string) string {
	sum := sha1.Sum([]byte(key + acceptMagic))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// frame is one frame as a client sends it: masked, as the protocol wants.
func frame(op byte, payload []byte, mask uint32) []byte {
	payload = payload[:min(len(payload), maxControl)]
	f := make([]byte, 0, 6+len(payload))
	f = append(f, frameFinal|op, frameMask|byte(len(payload)))
	f = binary.BigEndian.AppendUint32(f, mask)
	key := f[2:6]
	for i, b := range payload {
		f = append(f, b^key[i%4])
	}
	return f
}

// readFrame reads one frame of a server. What is in data frames is skipped.
func readFrame(br *bufio.Reader) (op byte, payload []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(br, head[:1]); err != nil {
		return 0, nil, err // an end between two frames is io.EOF
	}
	if _, err := io.ReadFull(br, head[1:]); err != nil {
		return 0, nil, noEOF(err)
	}
	op = head[0] & 0x0f
	size := uint64(head[1] &^ frameMask)
	var long [8]byte
	switch size {
	case 126:
		if _, err := io.ReadFull(br, long[6:]); err != nil {
			return 0, nil, noEOF(err)
		}
		size = binary.BigEndian.Uint64(long[:])
	case 127:
		if _, err := io.ReadFull(br, long[:]); err != nil {
			return 0, nil, noEOF(err)
		}
		size = binary.BigEndian.Uint64(long[:])
	}
	control := op >= opClose
	if head[1]&frameMask != 0 || op > opPong || op > 2 && !control || control && (size > maxControl || head[0]&frameFinal == 0) || size > maxMessage {
		return 0, nil, errFrame
	}
	if !control {
		_, err := io.CopyN(io.Discard, br, int64(size))
		return op, nil, noEOF(err)
	}
	payload = make([]byte, size)
	_, err = io.ReadFull(br, payload)
	return op, payload, noEOF(err)
}

// readFrames is the rest of a connection's life once it is a WebSocket.
func (c *conn) readFrames(br *bufio.Reader) {
	for {
		op, payload, err := readFrame(br)
		if err != nil {
			c.end(time.Now(), err, false)
			return
		}
		switch op {
		case opPing:
			_, _ = c.nc.Write(frame(opPong, payload, 0)) // if it fails, the next read does too
		case opPong:
			c.pong(payload)
		case opClose:
			_, _ = c.nc.Write(frame(opClose, payload[:min(2, len(payload))], 0))
			c.farewell(time.Now())
			return
		}
	}
}

// pong answers the ping that waits, if it is this one's; any other is a heartbeat that nobody asked for.
func (c *conn) pong(payload []byte) {
	c.mu.Lock()
	var r *request
	if len(c.pending) > 0 && c.pending[0].id == string(payload) {
		r = c.pending[0]
	}
	c.mu.Unlock()
	if r != nil {
		c.answer(r, outcome{at: time.Now(), status: http.StatusSwitchingProtocols})
	}
}

// farewell notes that the server has closed a WebSocket by the rules.
func (c *conn) farewell(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended, c.endAt, c.endErr = true, at, errFarewell
	if !c.local {
		c.how = announced
	}
	for _, r := range c.pending {
		r.done <- failure(at, errFarewell, false)
	}
	c.pending = nil
}

var errFarewell = errors.New("the server has sent a close frame")
