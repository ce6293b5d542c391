package workerpool

import (
	"errors"
	"fmt"
	"os"
	"time"

	"gapless/internal/channel"
	"gapless/internal/notify"
	"gapless/internal/packet"

	"go.uber.org/zap"
)

// Record is one worker as it travels from a master to the next: what is known of it, beside the descriptors that
// Files holds in the order that Kinds tells. Masters of different versions exchange it, so fields are only ever added.
type Record struct {
	Info
	Due        time.Time `json:"due"` // when its time to drain ends; zero: never
	Progress   progress  `json:"progress,omitzero"`
	TakesDrain bool      `json:"takes_drain"`
	Tells      bool      `json:"tells,omitempty"` // it will say by itself that it is ready
	NotifyName string    `json:"notify,omitempty"`
	Partial    [][]byte  `json:"partial,omitempty"`
	Dropped    [2]int    `json:"dropped,omitzero"` // lines of any worker that could not be written, in the first record
	Kinds      []string  `json:"kinds"`

	Files []*os.File `json:"-"`
}

// The kinds of descriptors in a Record.
const (
	kindPIDFD   = "pidfd"
	kindChannel = "channel"
	kindNotify  = "notify"
	kindStdout  = "stdout"
	kindStderr  = "stderr"
)

func (r *Record) add(kind string, f *os.File) {
	r.Kinds = append(r.Kinds, kind)
	r.Files = append(r.Files, f)
}

// take removes the file of a kind from the record; nil: it holds none.
func (r *Record) take(kind string) *os.File {
	for i, k := range r.Kinds {
		if k == kind && i < len(r.Files) && r.Files[i] != nil {
			f := r.Files[i]
			r.Files[i] = nil
			return f
		}
	}
	return nil
}

// Close closes the files that are still the record's.
func (r *Record) Close() { packet.CloseAll(r.Files) }

// Freeze stops the pool where it is: starts under way are finished, none begins, and nothing is read from the workers,
// so that their next words are for the next master. It returns the records to hand over, whose files are the caller's.
func (p *Pool) Freeze() ([]Record, error) {
	p.mu.Lock()
	if !p.frozen {
		p.frozen, p.thawed = true, make(chan struct{})
	}
	p.mu.Unlock()
	p.spawning.Lock()   // waits for starts that began before
	p.spawning.Unlock() //nolint:staticcheck // the lock is a barrier

	var records []Record
	for _, w := range p.all(nil) {
		w.stopReaders()
		w.settleHearing()
		r, err := w.record(true)
		if errors.Is(err, errGone) {
			continue
		}
		if err != nil {
			for i := range records {
				records[i].Close()
			}
			return nil, fmt.Errorf("hand over worker %s: %w", w.snapshot().ID, err)
		}
		records = append(records, r)
	}
	// What has been read is written before another master writes. It tells of what could not be.
	if p.cfg.Out != nil {
		p.dropped[0] += p.cfg.Out.Flush()
		p.dropped[1] += p.cfg.Err.Flush()
		if len(records) > 0 {
			records[0].Dropped = p.dropped
		}
	}
	return records, nil
}

// Thaw undoes Freeze.
func (p *Pool) Thaw() {
	p.lost(p.dropped)
	p.dropped = [2]int{}
	for _, w := range p.all(nil) {
		w.startReaders()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.frozen {
		p.frozen = false
		close(p.thawed)
	}
}

// lost has lines counted that were dropped, of the two streams.
func (p *Pool) lost(dropped [2]int) {
	if p.cfg.Out != nil {
		p.cfg.Out.lost(dropped[0])
		p.cfg.Err.lost(dropped[1])
	}
}

// Record describes a worker as it is now, for somebody who may have to take it over without another word. The files are the
// caller's. The worker goes on, and what it says goes on to be heard here.
func (p *Pool) Record(pid int) (Record, error) {
	for _, w := range p.all(func(i Info) bool { return i.PID == pid }) {
		return w.record(false)
	}
	return Record{}, fmt.Errorf("worker with pid %d: %w", pid, ErrNoWorker)
}

// LastLines returns what a worker printed last, where it goes through this process.
func (p *Pool) LastLines(pid int) []string {
	for _, w := range p.all(func(i Info) bool { return i.PID == pid }) {
		return w.out.lastLines()
	}
	return nil
}

// errGone says that a worker needs no handing over: it has ended and is reaped.
var errGone = errors.New("gone")

// record describes the worker, with descriptors. frozen says that it is for the end of this process's responsibility: then
// its output stands still from here on, and what is unfinished of it is in the record.
func (w *worker) record(frozen bool) (r Record, err error) {
	w.files.Lock()
	defer w.files.Unlock()
	if w.closed {
		return r, errGone
	}
	if w.out != nil && frozen {
		w.out.pause()
	}
	w.mu.Lock()
	r = w.recordLocked()
	w.mu.Unlock()
	if r.State == Exited {
		return r, errGone
	}
	defer func() {
		if err != nil {
			r.Close()
		}
		if errors.Is(err, os.ErrClosed) { // its own goroutine has begun to close what it had
			err = errGone
		}
	}()
	f, err := w.proc.File()
	if err != nil {
		return r, err
	}
	r.add(kindPIDFD, f)
	if w.ch != nil {
		if f, err = w.ch.File(); err != nil {
			return r, err
		}
		r.add(kindChannel, f)
	}
	if w.notify != nil {
		if f, err = w.notify.File(); err != nil {
			return r, err
		}
		r.add(kindNotify, f)
		r.NotifyName = w.notify.Address()
	}
	if w.out != nil {
		files, partial, err := w.out.files(frozen)
		if err != nil {
			return r, err
		}
		r.add(kindStdout, files[0])
		r.add(kindStderr, files[1])
		r.Partial = partial
	}
	return r, nil
}

// Adopt takes over the workers of an earlier master. They never are restarted, and only drain.
func (p *Pool) Adopt(records []Record) {
	for i := range records {
		r := &records[i]
		p.lost(r.Dropped)
		if err := p.adopt(r); err != nil {
			p.log.Error("worker of the earlier master cannot be adopted", zap.Int("pid", r.PID),
				zap.Int("generation", r.Generation), zap.Error(err))
		}
		r.Close()
	}
}

func (p *Pool) adopt(r *Record) error {
	w, err := p.attach(r, false)
	if err != nil {
		return err
	}
	w.wasUp = true // what it was is its own generation's history; nobody waits for it
	p.run(w)
	return nil
}

// takeOver gives the worker what its record tells and holds. After an error the worker is to be closed.
func (w *worker) takeOver(r *Record, onLine func([]byte)) (err error) {
	p := w.pool
	w.due, w.gets, w.takesDrain, w.tellsItself = r.Due, r.Progress, r.TakesDrain, r.Tells
	if f := r.take(kindChannel); f != nil {
		if w.ch, err = channel.New(f); err != nil {
			return err
		}
	} else {
		w.takesDrain = false
	}
	if f := r.take(kindNotify); f != nil {
		if w.notify, err = notify.FromFile(f, r.NotifyName); err != nil {
			return err
		}
	}
	if so, se := r.take(kindStdout), r.take(kindStderr); so != nil && se != nil {
		w.out = resumeOutput(so, se, r.Partial, onLine)
		p.route(w.out, r.Info)
	} else {
		packet.CloseAll([]*os.File{so, se})
	}
	return nil
}
