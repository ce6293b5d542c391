package workerpool

import (
	"fmt"
	"io"
	"sync"
)

// linesRoom is how many bytes of lines wait to be written, at most, before lines are dropped.
const linesRoom = 1 << 20

// Lines writes the lines of many workers to one place, each whole. Nobody who prints ever waits for that place: when it
// does not take them fast enough, lines are dropped, and it is said how many.
type Lines struct {
	out io.Writer

	mu      sync.Mutex
	waiting [][]byte
	size    int // of waiting, in bytes
	dropped int
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

func (l *Lines) put(prefix string, line []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(prefix) + len(line) + 1
	if l.closed || l.size+n > linesRoom {
		l.dropped++
		return
	}
	text := make([]byte, 0, n)
	text = append(append(append(text, prefix...), line...), '\n')
	l.waiting = append(l.waiting, text)
	l.size += n
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
		if len(l.waiting) == 0 && l.dropped == 0 {
			return
		}
		batch, dropped := l.waiting, l.dropped
		l.waiting, l.size, l.dropped, l.writing = nil, 0, 0, true
		l.mu.Unlock()
		for _, text := range batch {
			_, _ = l.out.Write(text) // a place that is gone must not stop the workers
		}
		if dropped > 0 {
			fmt.Fprintf(l.out, "gapless: %d lines of workers were dropped, as they could not be written fast enough\n", dropped)
		}
		l.mu.Lock()
		l.writing = false
		l.change.Broadcast()
	}
}

// Flush waits until all that was put before is written.
func (l *Lines) Flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for (len(l.waiting) > 0 || l.dropped > 0 || l.writing) && !l.closed {
		l.change.Wait()
	}
}

// Close writes what waits and ends.
func (l *Lines) Close() {
	l.mu.Lock()
	l.closed = true
	l.change.Broadcast()
	l.mu.Unlock()
	<-l.done
}
