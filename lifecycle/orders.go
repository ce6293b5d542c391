package lifecycle

import (
	"errors"
	"os"
	"slices"
	"syscall"
	"time"

	"gapless/internal/control"
	"gapless/internal/packet"
	"gapless/internal/procfs"

	"go.uber.org/zap"
)

const (
	// orderRetry is how soon the parent looks again whether there is room on the link.
	orderRetry = 20 * time.Millisecond
	// statusMost is how many questions for the status may be on the link. With those for the health it bounds what a master
	// that does not read finds there: signals and commands always have room.
	statusMost = 16
	// vacancyMost is how long the parent answers for the workers while no master is in charge: longer than the longest pause
	// and the time in which an heir decides.
	vacancyMost = restartMost + 3*undecidedMaster
)

// order is a signal or a command, and whether the master in charge has been sent it.
type order struct {
	linkMessage
	sent bool
}

// orders are what no master has acknowledged, in the order in which they came. What is on the link is bounded, and writing
// never waits: the goroutine of govern, whose they are, is the only one to read what would end the wait.
type orders struct {
	list  []order
	asked map[uint64]verb // questions that the master in charge was sent and has not answered, whoever still waits for them
}

// question tells whether it changes nothing: a new asker asks again, so it matters only as long as somebody waits.
func (m linkMessage) question() bool {
	return m.Command != nil && (m.Command.Verb == verbStatus || m.Command.Verb == verbHealth)
}

func (o *orders) add(m linkMessage) { o.list = append(o.list, order{linkMessage: m}) }

// has tells whether a signal has not been acted on yet.
func (o *orders) has(sig syscall.Signal) bool {
	return slices.ContainsFunc(o.list, func(r order) bool { return r.Signal == sig })
}

// acked forgets what a master has acted on; false: that was done before.
func (o *orders) acked(seq uint64) (linkMessage, bool) {
	delete(o.asked, seq)
	i := slices.IndexFunc(o.list, func(r order) bool { return r.Seq == seq })
	if i < 0 {
		return linkMessage{}, false
	}
	m := o.list[i].linkMessage
	o.list = slices.Delete(o.list, i, i+1)
	return m, true
}

// repeat has all of them sent once more: another master is in charge.
func (o *orders) repeat() {
	for i := range o.list {
		o.list[i].sent = false
	}
	clear(o.asked)
}

// prune forgets the questions that nobody waits for any more.
func (o *orders) prune(awaited func(seq uint64) bool) {
	o.list = slices.DeleteFunc(o.list, func(r order) bool { return r.question() && !awaited(r.Seq) })
}

// room tells whether one more question of the kind may be on the link.
func (o *orders) room(v verb) bool {
	n := 0
	for _, other := range o.asked {
		if other == v {
			n++
		}
	}
	return v == verbHealth && n < 1 || v == verbStatus && n < statusMost
}

// send sends the master in charge what it has not been sent, in order, until write says that the link is full.
func (o *orders) send(write func(linkMessage) bool) (full bool) {
	for i := range o.list {
		r := &o.list[i]
		if r.sent || r.question() && !o.room(r.Command.Verb) {
			continue
		}
		if !write(r.linkMessage) {
			return true
		}
		r.sent = true
		if r.question() {
			if o.asked == nil {
				o.asked = make(map[uint64]verb)
			}
			o.asked[r.Seq] = r.Command.Verb
		}
	}
	return false
}

// health takes the questions for the health out.
func (o *orders) health() (seqs []uint64) {
	o.list = slices.DeleteFunc(o.list, func(r order) bool {
		if r.Command == nil || r.Command.Verb != verbHealth {
			return false
		}
		seqs = append(seqs, r.Seq)
		return true
	})
	return seqs
}

// pass has a signal or a command sent, and again to the next master if none acknowledges it.
func (p *parent) pass(m linkMessage) { p.orders.add(m) }

// forward sends what is to be sent to the master in charge. Without one nothing is written, and the parent answers for the
// health of the workers, which serve on.
func (p *parent) forward() {
	p.retryC = nil
	p.orders.prune(p.ctl.awaited)
	if p.current == nil {
		for _, seq := range p.orders.health() {
			p.ctl.hear(linkMessage{Seq: seq, Result: &control.Result{OK: p.sound()}}, nil)
		}
		return
	}
	full := p.orders.send(p.tell)
	if full && !p.stalled {
		p.log.Warn("The master does not read what it is told; it is told when it does", fPID(p.current.PID()))
	}
	if p.stalled = full; full {
		p.retryC = time.After(orderRetry)
	}
}

// tell writes to the link; false: it is full.
func (p *parent) tell(m linkMessage) bool {
	err := p.link.TrySend(m)
	if err != nil && !errors.Is(err, packet.ErrFull) {
		p.log.Warn("signal not passed on; it is repeated to the next master", zap.Stringer("signal", m.Signal), zap.Error(err))
		return true // what cannot be sent must not keep back what comes next
	}
	return err == nil
}

// sound tells whether the service is, as far as the parent knows, although no master is in charge: one is about to be, and
// at least one worker of the generation lives.
func (p *parent) sound() bool {
	since, _ := p.ctl.vacancy.watch()
	if p.orphaned == nil || !p.inCharge || since.IsZero() || time.Since(since) > vacancyMost {
		return false
	}
	for _, id := range p.store.workerIDs() {
		if id.Generation != p.orphaned.generation {
			continue
		}
		// Its master is dead, so it has come to the parent: another parent's child has only its number.
		if s, err := procfs.ReadStat(id.PID); err == nil && !s.Dead() && s.Parent == os.Getpid() {
			return true
		}
	}
	return false
}
