package gapless

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

// scan feeds text in pieces of at most step bytes, as for a request whose
// body has this length, and says how much of it was let through.
func scanAll(s *scanner, text []byte, length int64, step int) (head, total int) {
	feed := func() {
		for total < len(text) {
			n := s.feed(text[total:min(total+step, len(text))])
			if n == 0 {
				return
			}
			total += n
		}
	}
	feed()
	head = total
	if s.phase == phAfter {
		s.body(length)
		feed()
	}
	return head, total
}

// FuzzScanner compares with what net/http reads of the same bytes.
func FuzzScanner(f *testing.F) {
	for _, c := range conversations {
		f.Add([]byte(c.send), 7)
	}
	f.Fuzz(func(t *testing.T, text []byte, step int) {
		step = 1 + step&0xfff
		if len(text) == 0 || len(text) > 64<<10 || text[0] == '\r' || text[0] == '\n' {
			return // net/http refuses those, or has skipped them before it looks
		}
		src := bytes.NewReader(text)
		br := bufio.NewReader(src)
		at := func() int { return len(text) - src.Len() - br.Buffered() }

		r, err := http.ReadRequest(br)
		if err != nil || r.ProtoMajor != 1 {
			return // the connection ends, or is hijacked
		}
		wantHead := at()
		n, err := io.Copy(io.Discard, r.Body)
		wantTotal := at()

		var s scanner
		head, total := scanAll(&s, text, r.ContentLength, step)
		if s.phase == phRaw {
			if strings.HasPrefix(string(text), preface) || err != nil || r.ContentLength < 0 {
				return // let through, and never moved
			}
			t.Fatalf("phRaw for %q", text)
		}
		if head != wantHead {
			t.Fatalf("the head of %q has %d bytes, net/http reads %d", text, head, wantHead)
		}
		if err != nil {
			if total < wantTotal {
				t.Fatalf("%q: %d bytes are let through, net/http wants %d before it says %v", text, total, wantTotal, err)
			}
			return
		}
		if total != wantTotal || s.phase != phAfter {
			t.Fatalf("%q with a body of %d bytes: ends at %d (phase %d), net/http at %d", text, n, total, s.phase, wantTotal)
		}
		var again scanner
		if h, n := scanAll(&again, text, r.ContentLength, len(text)); h != head || n != total {
			t.Fatalf("%q: cut differently it ends at %d, %d instead of %d, %d", text, h, n, head, total)
		}
	})
}

func TestScanner_ChunkedStaysMovable(t *testing.T) {
	for name, body := range map[string]string{
		"plain":      "5\r\nhello\r\n0\r\n\r\n",
		"extensions": "5;a=b;c=\"d\"\r\nhello\r\n0;last\r\n\r\n",
		"blanks":     "5 \t\r\nhello\r\n0 \r\n\r\n",
		"trailers":   "A\r\n0123456789\r\n00\r\nA: b\r\nC: d\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			text := chunked(body)
			for step := 1; step < len(text); step++ {
				var s scanner
				if _, n := scanAll(&s, []byte(text+get), -1, step); n != len(text) || s.phase != phAfter {
					t.Fatalf("in steps of %d it ends at %d of %d, phase %d", step, n, len(text), s.phase)
				}
			}
		})
	}
}

func TestScanner_IsEmptyOnlyBetweenRequests(t *testing.T) {
	var s scanner
	if !s.empty() {
		t.Error("not empty at the start")
	}
	for i := range get {
		if s.feed([]byte(get[i:i+1])) != 1 {
			t.Fatalf("byte %d is withheld", i)
		}
		if s.empty() {
			t.Fatalf("empty after %q", get[:i+1])
		}
	}
	if n := s.feed([]byte("G")); n != 0 {
		t.Error("a byte of the next request is let through")
	}
	s.next()
	if !s.empty() {
		t.Error("not empty after the request")
	}
}
