package workerpool

import (
	"bytes"
	"fmt"
	"io"
	"slices"
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
	waiting [][]byte
	size    int // of waiting, in bytes
	dropped int // after what waits
	closed  bool
	writing bool
	change  sync.Cond
	done    chan struct{}
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
		l.dropped += linesIn(text)
		return
	}
	l.tell()
	l.push(text)
	l.change.Broadcast()
}

func (l *Lines) push(text []byte) {
	l.waiting = append(l.waiting, text)
	l.size += len(text)
}

// tell says what was dropped, after all that waits.
func (l *Lines) tell() {
	if l.dropped > 0 {
		l.push(fmt.Appendf(nil, "gapless: %d lines of workers were dropped, as they could not be written fast enough\n", l.dropped))
		l.dropped = 0
	}
}

// linesIn counts lines; the end of one that is cut counts as well.
func linesIn(text []byte) int {
	n := bytes.Count(text, []byte("\n"))
	if len(text) > 0 && text[len(text)-1] != '\n' {
		n++
	}
	return n
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
		text := l.waiting[0]
		l.waiting = slices.Delete(l.waiting, 0, 1)
		l.size -= len(text)
		l.writing = true
		l.mu.Unlock()
		_, _ = l.out.Write(text) // a place that is gone must not stop the workers
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
	for _, text := range l.waiting {
		dropped += linesIn(text)
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
