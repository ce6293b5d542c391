package gapless

import "bytes"

// phase says which bytes net/http may have next.
type phase uint8

const (
	// phHead: the bytes of a request's head, up to and including its empty line.
	phHead phase = iota
	// phAfter: none. The head is complete and its body not yet announced, or the
	// body is complete as well; whoever reads now (net/http does, to notice that
	// the client went away) must not get a byte of the next request.
	phAfter
	// phBody: the rest of a body of known length.
	phBody
	// phChunk: the rest of a chunked body, trailers included.
	phChunk
	// phRaw: everything, for ever. The connection was hijacked, speaks HTTP/2
	// without TLS, or sent a body that is malformed and ends it.
	phRaw
)

// preface begins an HTTP/2 connection without TLS. What follows is not HTTP/1.
const preface = "PRI * HTTP/2.0\r\n\r\n"

// lineState is the position within a line of a head or of trailers.
type lineState uint8

const (
	lineInside  lineState = iota
	lineStart             // at the first byte
	lineStartCR           // behind a carriage return that is the first byte
)

// chunkState is the position within a chunked body.
type chunkState uint8

const (
	chunkSize    chunkState = iota // in a size line
	chunkData                      // in the data
	chunkDataCR                    // before the CR behind the data
	chunkDataLF                    // before the LF behind the data
	chunkTrailer                   // in the trailers
)

// maxChunkLine is longer than any size line that net/http accepts.
const maxChunkLine = 8 << 10

// scanner finds where requests end on an HTTP/1 connection, so that net/http
// is never given a byte beyond.
//
// It does not judge requests; net/http does. What matters is one direction: it
// never ends a request before net/http does, as then net/http would wait for
// bytes that are withheld. Where the two might differ the scanner goes to
// phRaw, which only costs the connection its handoff.
type scanner struct {
	phase   phase
	line    lineState
	started bool // a byte of the request line was seen
	matched int  // bytes of preface that the head has matched, -1 once it has not

	chunk chunkState
	left  int64  // of the body or of the chunk
	size  uint64 // of the chunk whose size line is being read
	seen  int    // bytes of the size line
	prev  byte   // the byte before, in size lines and trailers
	inExt bool   // behind the semicolon of a size line
	inWS  bool   // behind white space that must end the size
	digit bool   // a digit was seen
}

// empty says whether no byte of a request was let through since next.
func (s *scanner) empty() bool { return s.phase == phHead && !s.started && s.matched == 0 }

// isHTTP2 says whether the connection began as HTTP/2 does without TLS.
func (s *scanner) isHTTP2() bool { return s.phase == phRaw && s.matched == len(preface) }

// next expects a request.
func (s *scanner) next() {
	if s.phase != phRaw {
		*s = scanner{}
	}
}

// body announces the body of the request whose head is complete: its length,
// or -1 if it is chunked.
func (s *scanner) body(length int64) {
	switch {
	case s.phase != phAfter:
	case length > 0:
		s.phase, s.left = phBody, length
	case length < 0:
		s.phase, s.chunk, s.seen = phChunk, chunkSize, 0
		s.beginSize()
	}
}

// feed says how many of the bytes b, which follow those that were let through
// before, belong to the request, and takes note of them.
func (s *scanner) feed(b []byte) int {
	switch s.phase {
	case phHead:
		return s.feedHead(b)
	case phAfter:
		return 0
	case phBody:
		n := int(min(int64(len(b)), s.left))
		if s.left -= int64(n); s.left == 0 {
			s.phase = phAfter
		}
		return n
	case phChunk:
		return s.feedChunked(b)
	default:
		return len(b)
	}
}

func (s *scanner) feedHead(b []byte) int {
	i := 0
	if !s.started {
		// net/http forgives a few empty lines behind a POST and refuses them
		// elsewhere. Neither ends a head.
		for i < len(b) && (b[i] == '\r' || b[i] == '\n') {
			i++
		}
		if i > 0 {
			s.matched = -1
		}
		if i == len(b) {
			return i
		}
		s.started = true
	}
	if s.matched >= 0 {
		s.matchPreface(b[i:])
	}
	for i < len(b) {
		switch c := b[i]; {
		case s.line == lineInside:
			j := bytes.IndexByte(b[i:], '\n')
			if j < 0 {
				return len(b)
			}
			i += j
			s.line = lineStart
		case c == '\n':
			s.phase = phAfter
			if s.matched == len(preface) {
				s.phase = phRaw
				return len(b)
			}
			return i + 1
		case c == '\r' && s.line == lineStart:
			s.line = lineStartCR
		default:
			s.line = lineInside
		}
		i++
	}
	return i
}

func (s *scanner) matchPreface(b []byte) {
	n := min(len(b), len(preface)-s.matched)
	if string(b[:n]) == preface[s.matched:s.matched+n] {
		s.matched += n
	} else {
		s.matched = -1
	}
}

func (s *scanner) beginSize() {
	s.size, s.seen, s.prev, s.inExt, s.inWS, s.digit = 0, 0, 0, false, false, false
}

func (s *scanner) feedChunked(b []byte) int {
	for i := 0; i < len(b); {
		ok := true
		switch c := b[i]; s.chunk {
		case chunkSize:
			ok = s.sizeByte(c)
			i++
		case chunkData:
			n := min(int64(len(b)-i), s.left)
			i += int(n)
			if s.left -= n; s.left == 0 {
				s.chunk = chunkDataCR
			}
		case chunkDataCR:
			ok = c == '\r'
			s.chunk = chunkDataLF
			i++
		case chunkDataLF:
			ok = c == '\n'
			s.chunk = chunkSize
			s.beginSize()
			i++
		case chunkTrailer:
			i++
			if ok = s.trailerByte(c); ok && s.phase == phAfter {
				return i
			}
		}
		if !ok {
			s.phase = phRaw
			return len(b)
		}
	}
	return len(b)
}

// sizeByte reads a byte of a line such as "1f;name=value\r\n".
func (s *scanner) sizeByte(c byte) bool {
	s.seen++
	afterCR := s.prev == '\r'
	s.prev = c
	switch {
	case s.seen > maxChunkLine:
		return false
	case afterCR:
		if c != '\n' || !s.digit {
			return false
		}
		if s.size == 0 {
			s.chunk, s.line, s.prev = chunkTrailer, lineStart, 0
		} else {
			s.chunk, s.left = chunkData, int64(s.size)
		}
	case c == '\r':
	case c == '\n':
		return false
	case s.inExt:
	case c == ';':
		s.inExt = true
	case c == ' ' || c == '\t':
		s.inWS = true
	default:
		v, ok := hexDigit(c)
		if !ok || s.inWS || s.size >= 1<<58 {
			return false
		}
		s.size, s.digit = s.size<<4|uint64(v), true
	}
	return true
}

// trailerByte reads a byte of the trailers. Lines that end without CR are
// refused: net/http ends the trailers at one but wants to see a CRLF CRLF
// first, which may be that of a later request.
func (s *scanner) trailerByte(c byte) bool {
	afterCR := s.prev == '\r'
	s.prev = c
	switch {
	case c == '\n' && !afterCR:
		return false
	case c == '\n' && s.line == lineStartCR:
		s.phase = phAfter
	case c == '\n':
		s.line = lineStart
	case c == '\r' && s.line == lineStart:
		s.line = lineStartCR
	default:
		s.line = lineInside
	}
	return true
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}
