package workerpool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"gapless/internal/channel"

	"go.uber.org/zap"
)

// Keeper keeps, outside this process, what it takes to go on with the workers when this process is killed. Its methods
// are called from many goroutines.
type Keeper interface {
	// Keep stores a new worker's descriptors, before anything depends on the worker. It owns the record's files.
	Keep(Record)
	// Forget follows a worker's end.
	Forget(ID)
	// Changed says that Records has changed. It must not block.
	Changed()
	// Sync returns when what Records returns now is kept.
	Sync()
}

type noKeeper struct{}

func (noKeeper) Keep(r Record) { r.Close() }
func (noKeeper) Forget(ID)     {}
func (noKeeper) Changed()      {}
func (noKeeper) Sync()         {}

// keep stores a worker that has just been started.
func (p *Pool) keep(w *worker) {
	if _, none := p.cfg.Keeper.(noKeeper); none {
		return
	}
	r, err := w.record(false)
	if err != nil {
		p.log.Error("A worker would not survive its master", zap.Int("pid", w.proc.PID()), zap.Error(err))
		return
	}
	p.cfg.Keeper.Keep(r)
}

// recordLocked is what is known of the worker, without its descriptors. mu is held.
func (w *worker) recordLocked() Record {
	return Record{Info: w.info, Due: w.due, Progress: w.gets, TakesDrain: w.takesDrain, Tells: w.tellsItself}
}

// Records returns what is known of every worker, with the kinds of its descriptors and without these. Unlike Freeze it
// stops nothing.
func (p *Pool) Records() []Record {
	var records []Record
	for _, w := range p.all(nil) {
		w.mu.Lock()
		r := w.recordLocked()
		w.mu.Unlock()
		if r.State == Exited {
			continue
		}
		r.Kinds = []string{kindPIDFD}
		if w.ch != nil {
			r.Kinds = append(r.Kinds, kindChannel)
		}
		if w.notify != nil {
			r.Kinds = append(r.Kinds, kindNotify)
			r.NotifyName = w.notify.Address()
		}
		if w.out != nil {
			r.Kinds = append(r.Kinds, kindStdout, kindStderr)
		}
		records = append(records, r)
	}
	slices.SortFunc(records, func(a, b Record) int { return a.Started.Compare(b.Started) })
	return records
}

// Resume takes over all workers of a master that was killed: those of the pool's own generation go on in their n slots,
// each as what it was, and a slot whose worker died meanwhile gets a new one; all others drain, by o unless they have
// been told already. It is called once, on an empty pool. A worker cannot be told from outside whether it is one whose
// replacement was under way: of two in a slot the younger that is ready stays.
func (p *Pool) Resume(n int, r Recipe, records []Record, o Order) {
	p.mu.Lock()
	p.recipe = r
	for i := range n {
		p.slots = append(p.slots, &slot{n: i, recipe: r, hurry: make(chan struct{}, 1)})
	}
	p.mu.Unlock()
	mine := make(map[int]int) // by slot: the index of the record that stays
	for i := range records {
		c := &records[i]
		if c.Generation != p.cfg.Generation || c.Role != "" || c.Slot < 0 || c.Slot >= n || c.State > Ready || c.Told {
			continue
		}
		if k, taken := mine[c.Slot]; !taken || c.State > records[k].State || c.State == records[k].State && c.Started.After(records[k].Started) {
			mine[c.Slot] = i
		}
	}
	for i := range records {
		c := &records[i]
		var err error
		if k, ok := mine[c.Slot]; ok && k == i && c.Role == "" {
			err = p.resume(p.slots[c.Slot], c)
		} else {
			err = p.retire(c, o)
		}
		if err != nil {
			p.log.Error("worker of the killed master cannot be adopted", zap.Int("pid", c.PID), zap.Int("generation", c.Generation), zap.Error(err))
		}
		c.Close()
	}
	p.hasReady() // an older one may have been told to drain before those that serve on were here
	for _, s := range p.slots {
		p.mu.Lock()
		vacant := s.current == nil && !s.tended
		s.tended = s.tended || vacant
		p.mu.Unlock()
		if vacant {
			p.wg.Go(func() { p.restart(s, 0) })
		}
	}
}

// attach makes a worker of a record. With watched it may still be seen to wait for connections, and to become ready by that
// or by a line that it prints.
func (p *Pool) attach(r *Record, watched bool) (*worker, error) {
	f := r.take(kindPIDFD)
	if f == nil {
		return nil, errors.New("no pidfd came with it")
	}
	proc, err := p.cfg.Spawner.Attach(r.PID, f)
	if err != nil {
		return nil, err
	}
	w := newWorker(p, r.Info, proc)
	var onLine func([]byte)
	if watched {
		w.inodes = make(map[uint64]bool)
		for _, inode := range r.Inodes {
			w.inodes[inode] = true
		}
		onLine = w.lineMatcher()
	}
	if err := w.takeOver(r, onLine); err != nil {
		w.close()
		return nil, fmt.Errorf("worker %s: %w", r.ID, err)
	}
	return w, nil
}

// resume goes on with a worker in its slot.
func (p *Pool) resume(s *slot, r *Record) error {
	w, err := p.attach(r, true)
	if err != nil {
		return err
	}
	up := r.State == Ready
	w.wasUp = up
	p.mu.Lock()
	s.current, s.tended = w, !up
	p.mu.Unlock()
	p.run(w)
	if !up {
		p.wg.Go(func() {
			if err := w.started(); err == nil {
				p.untend(s, true)
				return
			}
			p.restart(s, 0)
		})
	}
	return nil
}

// retire takes over a worker that only drains.
func (p *Pool) retire(r *Record, o Order) error {
	w, err := p.attach(r, true)
	if err != nil {
		return err
	}
	w.wasUp = true // nobody waits for it, and nobody replaces it
	p.run(w)
	switch {
	case r.State == Killing:
		w.end(r.Reason)
	case r.State == Starting:
		w.end("what it was to replace serves on")
	case !r.Told:
		w.order(o)
	case time.Since(r.ToldAt) < doubtMost:
		told, takesDrain := r.ToldAt, w.takesDrain
		p.wg.Go(func() { p.remind(w, told, takesDrain, o) })
	}
	return nil
}

// A master that was killed had noted that it told a worker to drain, and may not have come to do so. Whether it has shows
// doubtLeast after the note: who has been told does not wait for connections any more. After doubtMost it is not asked.
const (
	doubtLeast = 2 * time.Second
	doubtMost  = time.Minute
)

// remind tells a worker to drain that may not have been told. Of orders over the channel only the first counts, so another
// one does no harm; a second stop signal might.
func (p *Pool) remind(w *worker, told time.Time, takesDrain bool, o Order) {
	if takesDrain {
		p.spawning.RLock()
		defer p.spawning.RUnlock()
		if isClosed(p.thaw()) { // else the next master is told what this one knows
			var queue *os.File
			if !o.Stop && o.Queue != nil && w.snapshot().Handoff {
				queue = o.Queue()
			}
			_ = w.ch.Send(channel.Drain{Deadline: o.Timeout, Extra: o.Extra, Spread: o.Spread, Handoff: queue != nil, Stop: o.Stop}, queue)
		}
		return
	}
	t := time.NewTimer(time.Until(told.Add(doubtLeast)))
	defer t.Stop()
	select {
	case <-t.C:
	case <-w.proc.Done():
		return
	}
	seen, err := p.cfg.Prober.Waiting(context.Background(), w.proc.PID(), w.inodes)
	p.spawning.RLock()
	defer p.spawning.RUnlock()
	if err != nil || !seen.Found() || !isClosed(p.thaw()) {
		return
	}
	p.log.Info("Worker was to stop and still waits for connections; it gets the stop signal again", zap.Int("pid", w.proc.PID()))
	_ = w.proc.Signal(p.cfg.StopSignal) // one that has just ended needs none
}
