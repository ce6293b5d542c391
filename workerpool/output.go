package workerpool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"gapless/internal/packet"
)

// tailLines is how many of a worker's last lines are kept for the report of its failure, maxLine the bytes of a line
// that are looked at.
const (
	tailLines = 20
	maxLine   = 64 << 10
)

// output carries what one worker prints through this process, which only --ready log= and --log-prefix ask for; otherwise
// workers write to the descriptors that gapless itself was started with, and nobody stands in between.
//
// Each stream has a pump that copies bytes as they come and looks at the lines on the way. To hand over, pause stops
// the pumps where they are; what is in the pipes then stays there for the next master, and an unfinished line, already
// copied, travels as Partial.
type output struct {
	streams [2]*stream
	running bool              // the pumps; of whoever starts and pauses
	onLine  func(line []byte) // called from both pumps
	prefix  string            // before each line, where they are whole

	mu   sync.Mutex
	tail []string
}

type stream struct {
	r       *os.File
	dst     io.Writer // takes the bytes as they come
	lines   *Lines    // takes whole lines with the worker's prefix instead; nil: none does
	partial []byte    // the line so far; the pump's while it runs
	done    chan struct{}
}

// newOutput makes the pipes of a new worker and returns the ends that the worker writes to, which the caller closes
// after the start.
func newOutput(onLine func([]byte)) (o *output, stdout, stderr *os.File, err error) {
	r1, w1, err := os.Pipe()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("pipe for the worker's output: %w", err)
	}
	r2, w2, err := os.Pipe()
	if err != nil {
		packet.CloseAll([]*os.File{r1, w1})
		return nil, nil, nil, fmt.Errorf("pipe for the worker's output: %w", err)
	}
	return resumeOutput(r1, r2, nil, onLine), w1, w2, nil
}

// resumeOutput goes on with pipes that another master has read from.
func resumeOutput(stdout, stderr *os.File, partial [][]byte, onLine func([]byte)) *output {
	o := &output{onLine: onLine}
	o.streams[0] = &stream{r: stdout, dst: os.Stdout}
	o.streams[1] = &stream{r: stderr, dst: os.Stderr}
	for i, p := range partial {
		if i < len(o.streams) {
			o.streams[i].partial = p
		}
	}
	return o
}

// start lets the pumps run, if they do not: two on one pipe would mix up what they read. It is not called while pause is.
func (o *output) start() {
	if o.running {
		return
	}
	o.running = true
	for _, s := range o.streams {
		s.done = make(chan struct{})
		_ = s.r.SetReadDeadline(time.Time{})
		go func() {
			defer close(s.done)
			o.pump(s)
		}()
	}
}

// pause stops the pumps and waits for them. start goes on where they stopped.
func (o *output) pause() {
	for _, s := range o.streams {
		_ = s.r.SetReadDeadline(time.Unix(1, 0))
	}
	o.wait()
	o.running = false
}

// wait returns when both streams have ended: nobody has them open any more.
func (o *output) wait() {
	for _, s := range o.streams {
		if s.done != nil {
			<-s.done
		}
	}
}

// finish waits for the last words of a worker that has exited. A descendant that escaped its group and keeps the
// pipes open is not waited for beyond the grace.
func (o *output) finish(grace time.Duration) {
	t := time.AfterFunc(grace, func() {
		for _, s := range o.streams {
			_ = s.r.SetReadDeadline(time.Unix(1, 0))
		}
	})
	defer t.Stop()
	o.wait()
	o.close()
}

// close closes pipes that no pump reads from.
func (o *output) close() {
	for _, s := range o.streams {
		s.r.Close()
	}
}

func (o *output) pump(s *stream) {
	buf := make([]byte, 32<<10)
	for {
		n, err := s.r.Read(buf)
		if n > 0 {
			// When our own stdout is gone the worker must not suffer for it: what it prints is read all the same.
			if s.lines == nil {
				_, _ = s.dst.Write(buf[:n])
			}
			o.lines(s, buf[:n])
		}
		if err != nil {
			if errors.Is(err, io.EOF) && len(s.partial) > 0 {
				o.line(s, s.partial)
				s.partial = nil
			}
			return
		}
	}
}

func (o *output) lines(s *stream, data []byte) {
	for len(data) > 0 {
		i := bytes.IndexByte(data, '\n')
		if i < 0 {
			if room := maxLine - len(s.partial); room > 0 {
				s.partial = append(s.partial, data[:min(room, len(data))]...)
			}
			return
		}
		line := data[:i]
		if len(s.partial) > 0 {
			line = append(s.partial, line...)
			s.partial = nil
		}
		o.line(s, line)
		data = data[i+1:]
	}
}

func (o *output) line(s *stream, line []byte) {
	if s.lines != nil {
		s.lines.put(o.prefix, line)
	}
	line = bytes.TrimRight(line, "\r")
	o.mu.Lock()
	if len(o.tail) == tailLines {
		o.tail = slices.Delete(o.tail, 0, 1)
	}
	o.tail = append(o.tail, string(line[:min(len(line), 1024)]))
	o.mu.Unlock()
	if o.onLine != nil {
		o.onLine(line)
	}
}

// lastLines returns what the worker printed last, oldest first.
func (o *output) lastLines() []string {
	if o == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.tail)
}

// files returns duplicates of the pipes' ends and, only while paused, the unfinished lines.
func (o *output) files(paused bool) ([]*os.File, [][]byte, error) {
	var files []*os.File
	var partial [][]byte
	for _, s := range o.streams {
		f, err := packet.Dup(s.r, "output")
		if err != nil {
			packet.CloseAll(files)
			return nil, nil, err
		}
		files = append(files, f)
		if paused {
			partial = append(partial, s.partial)
		}
	}
	return files, partial, nil
}
