package workerpool

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// sink is a destination that can be read while a pump writes to it, and that can fail.
type sink struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	err   error
	wrote chan struct{} // a token after each write
}

func newSink() *sink { return &sink{wrote: make(chan struct{}, 1000)} }

func (s *sink) Write(p []byte) (int, error) {
	defer func() { s.wrote <- struct{}{} }()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	return s.buf.Write(p)
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// printer is an output whose streams go to sinks, and the worker's ends of its pipes.
type printer struct {
	*output
	stdout, stderr *os.File
	out, err       *sink

	mu    sync.Mutex
	lines []string
}

func newPrinter(t *testing.T) *printer {
	t.Helper()
	p := &printer{out: newSink(), err: newSink()}
	var err error
	if p.output, p.stdout, p.stderr, err = newOutput(p.line); err != nil {
		t.Fatal(err)
	}
	p.streams[0].dst, p.streams[1].dst = p.out, p.err
	return p
}

func (p *printer) line(line []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lines = append(p.lines, string(line))
}

// print writes as the worker does and waits until the pump has copied it.
func (p *printer) print(t *testing.T, text string) {
	t.Helper()
	before := len(p.out.String())
	if _, err := p.stdout.WriteString(text); err != nil {
		t.Fatal(err)
	}
	for len(p.out.String()) < before+len(text) {
		select {
		case <-p.out.wrote:
		case <-time.After(10 * time.Second):
			t.Fatalf("of %q only %q was copied", text, p.out.String())
		}
	}
}

// close is the worker's exit; the output ends.
func (p *printer) close() {
	p.stdout.Close()
	p.stderr.Close()
	p.finish(10 * time.Second)
}

func TestOutput_FindsLinesAcrossReads(t *testing.T) {
	for _, tc := range []struct {
		name   string
		writes []string
		want   []string
	}{
		{"one line", []string{"a\n"}, []string{"a"}},
		{"two at once", []string{"a\nb\n"}, []string{"a", "b"}},
		{"in pieces", []string{"he", "ll", "o\nwor", "ld\n"}, []string{"hello", "world"}},
		{"empty lines", []string{"\n\n", "\n"}, []string{"", "", ""}},
		{"carriage returns", []string{"a\r", "\nb\r\n"}, []string{"a", "b"}},
		{"last words without a newline", []string{"a\nby", "e"}, []string{"a", "bye"}},
		{"nothing", nil, nil},
		{"a long line", []string{strings.Repeat("x", 20000), strings.Repeat("y", 20000) + "\n"},
			[]string{strings.Repeat("x", 20000) + strings.Repeat("y", 20000)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPrinter(t)
			p.start()
			for _, text := range tc.writes {
				p.print(t, text)
			}
			p.close()
			if !slices.Equal(p.lines, tc.want) {
				t.Errorf("lines %.100q, want %.100q", p.lines, tc.want)
			}
			if got, want := p.out.String(), strings.Join(tc.writes, ""); got != want {
				t.Errorf("copied %d bytes, want %d", len(got), len(want))
			}
		})
	}
}

func TestOutput_KeepsTheTail(t *testing.T) {
	p := newPrinter(t)
	p.start()
	var want []string
	for i := range tailLines + 5 {
		line := fmt.Sprint("line ", i)
		p.print(t, line+"\n")
		want = append(want, line)
	}
	p.print(t, strings.Repeat("z", 3000))
	p.close()
	want = append(want[6:], strings.Repeat("z", 1024)) // a report shows no more of a line
	if got := p.lastLines(); !slices.Equal(got, want) {
		t.Errorf("tail %.300q, want %.300q", got, want)
	}
	if (*output)(nil).lastLines() != nil {
		t.Error("a worker whose output is not read has last lines")
	}
}

// Whoever begins to listen again does not know that nobody has stopped.
func TestOutput_StartsOnce(t *testing.T) {
	p := newPrinter(t)
	p.start()
	first := p.streams[0].done
	p.start()
	if p.streams[0].done != first {
		t.Error("a second pump reads the same pipe")
	}
	p.close()
}

func TestOutput_PauseLosesNothing(t *testing.T) {
	p := newPrinter(t)
	p.start()
	p.print(t, "first\nsec")
	p.pause()
	if _, err := p.stdout.WriteString("ond\nthi"); err != nil { // stays in the pipe
		t.Fatal(err)
	}
	if got := p.out.String(); got != "first\nsec" {
		t.Errorf("while paused %q was copied", got)
	}
	p.start()
	p.print(t, "rd\n")
	p.close()
	if want := []string{"first", "second", "third"}; !slices.Equal(p.lines, want) {
		t.Errorf("lines %q, want %q", p.lines, want)
	}
	if got := p.out.String(); got != "first\nsecond\nthird\n" {
		t.Errorf("copied %q", got)
	}
}

func TestOutput_TravelsWithItsUnfinishedLine(t *testing.T) {
	p := newPrinter(t)
	p.start()
	p.print(t, "one\ntw")
	p.pause()
	files, partial, err := p.files(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range p.streams { // the earlier master has gone
		s.r.Close()
	}
	next := &printer{out: newSink(), err: newSink(), stdout: p.stdout, stderr: p.stderr}
	next.output = resumeOutput(files[0], files[1], partial, next.line)
	next.streams[0].dst, next.streams[1].dst = next.out, next.err
	next.start()
	next.print(t, "o\nthree\n")
	if _, err := next.stderr.WriteString("oops"); err != nil {
		t.Fatal(err)
	}
	next.close()
	if want := []string{"two", "three", "oops"}; !slices.Equal(sortedCopy(next.lines), sortedCopy(want)) {
		t.Errorf("lines %q, want %q", next.lines, want)
	}
	if next.out.String() != "o\nthree\n" || next.err.String() != "oops" {
		t.Errorf("the next master copied %q and %q", next.out, next.err)
	}
}

func sortedCopy(s []string) []string { return slices.Sorted(slices.Values(s)) }

func TestOutput_ABrokenDestinationStopsNobody(t *testing.T) {
	p := newPrinter(t)
	p.out.err = errors.New("broken pipe")
	p.start()
	// More than a pipe holds: a pump that gave up would block the worker.
	for range 20 {
		if _, err := p.stdout.Write(bytes.Repeat([]byte("0123456789abcde\n"), 1000)); err != nil {
			t.Fatal(err)
		}
	}
	p.close()
	if len(p.lines) != 20000 {
		t.Errorf("%d lines were seen, want 20000", len(p.lines))
	}
}

func TestOutput_DoesNotWaitForADescendantThatKeepsThePipe(t *testing.T) {
	p := newPrinter(t)
	p.start()
	p.print(t, "parting\nwords")
	p.finish(10 * time.Millisecond) // stdout and stderr are still open here
	if got := p.out.String(); got != "parting\nwords" {
		t.Errorf("copied %q", got)
	}
	p.stdout.Close()
	p.stderr.Close()
}

// However the writes fall and wherever it is paused: all bytes arrive once and in order, and so do the lines.
func TestOutput_Properties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := newPrinter(t)
		p.start()
		var all strings.Builder
		for range rapid.IntRange(0, 12).Draw(rt, "steps") {
			if rapid.Bool().Draw(rt, "pause") {
				p.pause()
				p.start()
				continue
			}
			text := rapid.StringOfN(rapid.RuneFrom([]rune("ab\n\rä")), 0, 40, -1).Draw(rt, "text")
			all.WriteString(text)
			if _, err := p.stdout.WriteString(text); err != nil {
				rt.Fatal(err)
			}
		}
		p.close()
		if got := p.out.String(); got != all.String() {
			rt.Fatalf("copied %q, printed %q", got, all.String())
		}
		var want []string
		for line := range strings.Lines(all.String()) {
			want = append(want, strings.TrimRight(strings.TrimSuffix(line, "\n"), "\r"))
		}
		if !slices.Equal(p.lines, want) {
			rt.Fatalf("lines %q, want %q", p.lines, want)
		}
	})
}
