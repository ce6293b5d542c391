package load

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
)

// Headers that tie responses to requests and to generations.
const (
	HeaderID         = "X-Request-Id"
	HeaderGeneration = "X-Gapless-Generation"
)

// request is one request and, once done is readable, what became of it.
type request struct {
	id       string
	method   string
	body     []byte
	intended time.Time
	done     chan outcome // buffered, gets exactly one outcome

	handshake bool   // of a WebSocket
	key       string // of the handshake
}

// outcome is what the wire said, before it is compared with what should have come.
type outcome struct {
	at     time.Time // when the last byte, or the end of the connection, was read
	status int
	header http.Header
	body   []byte
	closes bool  // the response announced the end of the connection
	class  Class // "" for a complete response
	err    error
}

// send is what goes out at one intended time: one request, or several pipelined, in pieces.
type send struct {
	requests []*request
	pieces   [][]byte
	gaps     []time.Duration // before each piece but the first
}

// maxSplitGap is the longest time between two pieces of a send.
const maxSplitGap = 2 * time.Millisecond

// compose draws the next send of a slot. All randomness of a slot is drawn here and in the schedule, so the order is fixed.
func compose(s *Stream, host string, rng *rand.Rand, slot, seq int, intended time.Time) *send {
	n := 1
	if rng.Float64() < s.Pipeline {
		n = 2 + rng.IntN(4)
	}
	out := &send{}
	var text bytes.Buffer
	for i := range n {
		r := &request{
			id:       fmt.Sprintf("%s-%d-%d-%d", token(s.Name), slot, seq, i),
			method:   s.Method,
			intended: intended,
			done:     make(chan outcome, 1),
		}
		switch {
		case s.Body > 0:
			r.body = fill(r.id, s.Body, rng)
		case len(s.Payload) > 0:
			r.body = s.Payload
		}
		if s.Kind == WebSocket {
			text.Write(frame(opPing, []byte(r.id), rng.Uint32()))
		} else {
			write(&text, s, host, r, rng)
		}
		out.requests = append(out.requests, r)
	}
	out.pieces = [][]byte{text.Bytes()}
	if rng.Float64() < s.Split {
		out.pieces = cut(text.Bytes(), 1+rng.IntN(2), rng)
	}
	for range out.pieces[1:] {
		out.gaps = append(out.gaps, time.Duration(rng.Int64N(int64(maxSplitGap))))
	}
	return out
}

// token makes a name fit for a header and, with the numbers behind it, for a ping.
func token(name string) string {
	name = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, name)
	return name[:min(len(name), 60)]
}

// shift moves the time from which latency counts.
func (s *send) shift(d time.Duration) {
	for _, r := range s.requests {
		r.intended = r.intended.Add(d)
	}
}

// fill makes a body of n bytes that no other request has, as far as n allows: the ID, then noise from the generator that
// is cheapest per byte, for the time that it takes is our own lateness.
func fill(id string, n int, rng *rand.Rand) []byte {
	var seed [32]byte
	for i := 0; i < len(seed); i += 8 {
		binary.LittleEndian.PutUint64(seed[i:], rng.Uint64())
	}
	body := make([]byte, n)
	_, _ = rand.NewChaCha8(seed).Read(body[copy(body, id):]) // never fails
	return body
}

func write(w *bytes.Buffer, s *Stream, host string, r *request, rng *rand.Rand) {
	fmt.Fprintf(w, "%s %s HTTP/1.1\r\nHost: %s\r\n%s: %s\r\n", r.method, s.Path, host, HeaderID, r.id)
	if !s.Kind.lasts() {
		w.WriteString("Connection: close\r\n")
	}
	_ = s.Header.Write(w) // a bytes.Buffer takes everything
	switch {
	case len(r.body) == 0 && (r.method == http.MethodGet || r.method == http.MethodHead):
		w.WriteString("\r\n")
	case len(r.body) > 0 && rng.Float64() < s.Chunked:
		w.WriteString("Transfer-Encoding: chunked\r\n\r\n")
		for rest := r.body; len(rest) > 0; {
			n := 1 + rng.IntN(len(rest))
			fmt.Fprintf(w, "%x\r\n%s\r\n", n, rest[:n])
			rest = rest[n:]
		}
		w.WriteString("0\r\n\r\n")
	default:
		fmt.Fprintf(w, "Content-Length: %d\r\n\r\n", len(r.body))
		w.Write(r.body)
	}
}

// cut divides text at so many random places.
func cut(text []byte, places int, rng *rand.Rand) [][]byte {
	var pieces [][]byte
	for ; places > 0 && len(text) > 1; places-- {
		at := 1 + rng.IntN(len(text)-1)
		pieces = append(pieces, text[:at])
		text = text[at:]
	}
	return append(pieces, text)
}

// judge compares a complete response with what the stream demands.
func judge(s *Stream, r *request, o outcome) (Class, error) {
	if o.class != "" {
		return o.class, o.err
	}
	if s.Kind == WebSocket {
		if o.status != http.StatusSwitchingProtocols {
			return Status, fmt.Errorf("status %d, want %d", o.status, http.StatusSwitchingProtocols)
		}
		if r.handshake && o.header.Get("Sec-WebSocket-Accept") != acceptOf(r.key) {
			return Body, errAccept
		}
		return "", nil
	}
	if o.status != s.Status {
		return Status, fmt.Errorf("status %d, want %d", o.status, s.Status)
	}
	if id := o.header.Get(HeaderID); id != r.id && !s.AnyID && (s.Echo || id != "") {
		return Body, fmt.Errorf("answer to request %q", id)
	}
	if s.Echo && !bytes.Equal(o.body, r.body) {
		return Body, fmt.Errorf("%d bytes that differ from the %d that were sent", len(o.body), len(r.body))
	}
	if s.Check != nil {
		if err := s.Check(r.body, o.body, o.header); err != nil {
			return Body, err
		}
	}
	return "", nil
}
