package workerpool

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"
)

// linesRoom is how many bytes wait to be written, at most, before lines are dropped.
const linesRoom = 1 << 20

// linesPatience is how long Flush and Close wait for a place that may be blocked.
const linesPatience = 500 * time.Millisecond

// Lines writes what many workers print to one place. Nobody who prints, and nobody who hands over or ends, ever waits long
// for that place: when it does not take the lines fast enough, lines are dropped, and it is said how many, where they are
// missing.
type Lines struct {
	out io.Writer

	mu      sync.Mutex
	waiting []words
	size    int // of waiting, in bytes
	dropped int // after what waits
	closed  bool
	writing bool
	change  sync.Cond
	done    chan struct{}
}

// words wait to be written: what workers printed, or how many of their lines are missing here.
type words struct {
	text    []byte
	missing int
}

// lines is how many lines are lost if the words are.
func (w words) lines() int {
	n := w.missing + bytes.Count(w.text, []byte("\n"))
	if len(w.text) > 0 && w.text[len(w.text)-1] != '\n' {
		n++ // the rest of a line that is cut
	}
	return n
}

func (w words) bytes() []byte {
	if w.missing == 0 {
		return w.text
	}
	return fmt.Appendf(nil, "gapless: %d lines of workers were dropped, as they could not be written fast enough\n", w.missing)
}

// NewLines returns a writer of lines to out. Close ends it.
func NewLines(out io.Writer) *Lines {
	l := &Lines{out: out, done: make(chan struct{})}
	l.change.L = &l.mu
	go l.run()
	return l
}

// put takes a whole line, without its end.
func (l *Lines) put(prefix string, line []byte) {
	text := make([]byte, 0, len(prefix)+len(line)+1)
	l.add(append(append(append(text, prefix...), line...), '\n'))
}

// Write takes bytes as they come, which need not be whole lines. It never fails.
func (l *Lines) Write(text []byte) (int, error) {
	l.add(bytes.Clone(text))
	return len(text), nil
}

func (l *Lines) add(text []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.size+len(text) > linesRoom {
		l.dropped += words{text: text}.lines()
		return
	}
	l.tell()
	l.waiting = append(l.waiting, words{text: text})
	l.size += len(text)
	l.change.Broadcast()
}

// tell says what was dropped, after all that waits.
func (l *Lines) tell() {
	if l.dropped > 0 {
		l.waiting = append(l.waiting, words{missing: l.dropped})
		l.dropped = 0
	}
}

// lost notes that lines were dropped by somebody else: by this process's predecessor, or by Flush.
func (l *Lines) lost(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropped += n
	l.change.Broadcast()
}

// run writes until the end. What is written last tells of what was dropped.
func (l *Lines) run() {
	defer close(l.done)
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		for len(l.waiting) == 0 && l.dropped == 0 && !l.closed {
			l.change.Wait()
		}
		if len(l.waiting) == 0 {
			l.tell()
		}
		if len(l.waiting) == 0 {
			return
		}
		// One by one: whoever gives up waiting takes all the others away.
		next := l.waiting[0]
		l.waiting[0] = words{}
		l.waiting = l.waiting[1:]
		l.size -= len(next.text)
		l.writing = true
		l.mu.Unlock()
		_, _ = l.out.Write(next.bytes()) // a place that is gone must not stop the workers
		l.mu.Lock()
		l.writing = false
		l.change.Broadcast()
	}
}

// Flush waits until all that was taken before is written, because somebody else is about to write there. If that takes too
// long it drops what waits, and returns how many lines that are, for lost.
func (l *Lines) Flush() (dropped int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	late := false
	t := time.AfterFunc(linesPatience, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		late = true
		l.change.Broadcast()
	})
	defer t.Stop()
	for (len(l.waiting) > 0 || l.dropped > 0 || l.writing) && !l.closed && !late {
		l.change.Wait()
	}
	for _, w := range l.waiting {
		dropped += w.lines()
	}
	dropped += l.dropped
	l.waiting, l.size, l.dropped = nil, 0, 0
	return dropped
}

// Close writes what waits and ends, or leaves it if that takes too long: then a write goes on that nothing can end but the
// process's end.
func (l *Lines) Close() {
	l.lost(l.Flush())
	l.mu.Lock()
	l.closed = true
	l.change.Broadcast()
	l.mu.Unlock()
	t := time.NewTimer(linesPatience)
	defer t.Stop()
	select {
	case <-l.done:
	case <-t.C:
	}
}
