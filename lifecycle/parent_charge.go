package lifecycle

import (
	"context"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"gapless/internal/notify"
	"gapless/internal/pidfd"
	"gapless/internal/procfs"

	"go.uber.org/zap"
)

// sentinelField is in the message that the parent sends to itself: whatever a dead master had said comes before it.
const sentinelField = "X_GAPLESS_SENTINEL"

// What the parent wants to know when it hears the sentinel.
const (
	sentinelCharge = "charge" // who follows the master in charge
	sentinelLeft   = "left"   // what one that never was in charge has left
)

// The role of a process that was started with the arguments of `gapless run`: without the variable it is a parent.
const (
	roleVariable = "GAPLESS_ROLE"
	roleMaster   = "master"
)

// IsMaster tells whether this process was started as a master.
func IsMaster() bool { return os.Getenv(roleVariable) == roleMaster }

// note acts on a message to the notify socket; true: there is no master any more.
func (p *parent) note(m notify.Message) bool {
	if m.PID == os.Getpid() && m.Fields[sentinelField] != "" {
		if m.Fields[sentinelField] == sentinelLeft {
			p.cleanLeft()
			return false
		}
		return p.decide()
	}
	if m.UID != os.Getuid() {
		notify.CloseFDs(m.FDs)
		p.log.Warn("notify message from another user ignored", fPID(m.PID), zap.Int("uid", m.UID))
		return false
	}
	from := p.sender(m.PID)
	if g, ok := m.Fields[generationField]; ok && from == nil && descends(m.PID) {
		generation, err := strconv.Atoi(g)
		proc, openErr := pidfd.Open(m.PID)
		if err != nil || openErr != nil {
			notify.CloseFDs(m.FDs)
			return false // dead already, or nonsense
		}
		from = p.adopt(proc, generation)
		p.holdBinary(from)
	}
	if from == p.current && !p.inCharge && m.Fields["MAINPID"] == "" && m.Fields[generationField] != "" {
		// Not earlier: a start that fails at the first look is one line on the terminal, and no story.
		if p.fatal != nil {
			p.signal(syscall.SIGQUIT)
			return false
		}
		p.log.Info("Started parent process", fPID(os.Getpid()))
	}
	if from == nil && p.saidLast(m.PID, m.Fields, m.FDs) {
		return false
	}
	if from == nil {
		notify.CloseFDs(m.FDs)
		if m.Fields["FDSTOREREMOVE"] == "" && m.Fields["FDSTORE"] == "" { // a dead candidate's are no news
			p.log.Warn("notify message from a stranger ignored", fPID(m.PID))
		}
		return false
	}
	from.word.hear(m.Fields)
	p.stored(from, m.Fields, m.FDs)
	if m.Fields["MAINPID"] == strconv.Itoa(m.PID) {
		if from == p.current || from == p.orphaned {
			p.charge(from)
		} else if !from.announced {
			from.announced = true
			if p.orphaned != nil {
				return p.decide()
			}
			p.watchOver(p.current, overdueMaster)
		}
	}
	if from == p.current { // what a candidate says counts when it is in charge
		p.up.follow(from.word)
		p.up.extend(m.Fields[extendField])
	}
	return false
}

// sender is the master whose words count that has this PID, nil if there is none: one that lives, or of which it is not
// decided yet what comes of its death.
func (p *parent) sender(pid int) *process {
	if m := p.masters[pid]; m != nil {
		return m
	}
	for _, m := range []*process{p.orphaned, p.fallen} {
		if m != nil && m.PID() == pid {
			return m
		}
	}
	return nil
}

// watchOver has a master looked at again after d.
func (p *parent) watchOver(m *process, d time.Duration) {
	if m == nil || m.overdue != nil {
		return
	}
	m.overdue = time.AfterFunc(d, func() {
		select {
		case p.timeout <- m:
		case <-m.Done():
		case <-p.over:
		}
	})
}

// overdue ends a master that should have ended.
func (p *parent) overdue(m *process) {
	if m == p.current && p.fallen != nil {
		// Its successor died before it was heard, so it serves on, and has ended what that one had started.
		p.dropFallen()
		m.overdue = nil
		return
	}
	p.log.Error("Master is overdue and is killed", fPID(m.PID()), fGeneration(m.generation))
	_ = m.Signal(syscall.SIGKILL)
}

// ended follows a master's end; true: there is none left.
func (p *parent) ended(e ended) bool {
	m := e.master
	delete(p.masters, m.PID())
	if m.overdue != nil {
		m.overdue.Stop()
	}
	if m != p.current {
		if m.announced && p.current != nil {
			// Whether it was in charge shows in what its predecessor does now: end, or serve on.
			p.dropFallen()
			p.fallen, m.status = m, e.status
			return false
		}
		if p.current == nil && p.orphaned != nil && p.status == 0 {
			// Its predecessor has ended in order. Whether that was because this one took charge is clear when all has been
			// heard that it said.
			p.dropFallen()
			p.fallen, m.status = m, e.status
			if err := p.tellSelf(sentinelCharge); err != nil {
				p.log.Error("cannot tell who follows", zap.Error(err))
				return p.decide()
			}
			return false
		}
		// It never took charge. The master in charge ends what it started, unless it died as well.
		if p.orphaned != nil && m.exe != nil && p.orphaned.exe == nil {
			p.orphaned.exe, m.exe = m.exe, nil // of one that was to take its place
		}
		m.release()
		p.cleanUp(m)
		return false
	}
	m.Close()
	if !m.charged.IsZero() && time.Since(m.charged) > restartStable {
		p.deaths = 0
	}
	p.orphaned, p.current = m, nil
	p.status = statusOf(e.status)
	if f := p.fallen; f != nil && p.status == 0 {
		// It had handed over.
		p.fallen = nil
		p.promote(f)
		p.orphaned, p.current, p.status = f, nil, statusOf(f.status)
	}
	p.dropFallen()
	// Who follows is clear when all has been heard that was said before.
	if err := p.tellSelf(sentinelCharge); err != nil {
		p.log.Error("cannot tell who follows", zap.Error(err))
		return p.decide()
	}
	return false
}

// decide finds the successor of the dead master in charge; true: there is none.
func (p *parent) decide() bool {
	if p.orphaned != nil {
		p.endSteps(p.orphaned.PID())
	}
	if p.cleaning > 0 {
		return false // asked again when that is done
	}
	if f := p.fallen; f != nil && p.current == nil {
		if !f.announced {
			p.dropFallen() // which is asked for again when it is done
			return false
		}
		p.fallen = nil
		p.promote(f)
		p.orphaned, p.current, p.status = f, nil, statusOf(f.status)
	}
	var undecided bool
	for _, m := range p.masters {
		if m.announced {
			p.promote(m)
			return false
		}
		// It decides: either it has been handed the charge and says so, or it ends itself.
		p.watchOver(m, undecidedMaster)
		undecided = true
	}
	return !undecided && !p.restart()
}

// charge notes that a master is in charge.
func (p *parent) charge(m *process) {
	p.inCharge = true
	if m.charged.IsZero() {
		m.charged = time.Now()
		p.up.vault.charge(p.store, m.PID())
	}
}

// dropFallen forgets a master that had announced itself and was not in charge.
func (p *parent) dropFallen() {
	if p.fallen != nil {
		p.fallen.release()
		p.cleanUp(p.fallen)
		p.fallen = nil
	}
}

// promote puts a master in charge.
func (p *parent) promote(m *process) {
	if m.overdue != nil {
		m.overdue.Stop()
		m.overdue = nil
	}
	p.log.Debug("master in charge", fPID(m.PID()), fGeneration(m.generation))
	if p.orphaned != nil && m.generation != p.orphaned.generation {
		p.deaths = 0 // another release, perhaps
	}
	if p.orphaned != nil {
		p.store.inherit(p.orphaned.PID(), m.PID())
		p.orphaned.release()
	}
	for _, name := range m.removals {
		p.store.remove(name, m.PID(), true)
	}
	m.removals = nil
	p.current, p.orphaned, p.status, p.restartC = m, nil, 0, nil
	p.charge(m)
	p.up.follow(m.word)
	clear(p.again) // what nobody has acted on comes after all that was asked for
	p.orders.repeat()
}

// statusOf is the exit status that stands for a master's end.
func statusOf(s pidfd.Status) int {
	if !s.Known || s.Signal != 0 {
		return 1
	}
	return s.Code
}

// end follows the last master: what is left drains, then it is killed. Nothing that the parent started outlives it.
func (p *parent) end(ctx context.Context) error {
	if p.stopping > 0 && p.status == 0 || !p.inCharge {
		// In order, or never begun: the master has left nobody, and what it has left must go.
		_, _ = procfs.SignalDescendants(os.Getpid(), syscall.SIGKILL)
		p.waitForOrphans(ctx, 0)
		return nil
	}
	p.log.Error("The master has ended; gapless drains and ends", zap.Int("status", p.status))
	p.up.fail("the master has ended; gapless drains and ends")
	if p.status == 0 {
		p.status = 1
	}
	_, _ = procfs.SignalDescendants(os.Getpid(), syscall.SIGTERM)
	p.waitForOrphans(ctx, p.cfg.DrainTimeout)
	return nil
}

// waitForOrphans waits until the parent has no living descendant; after limit (0: at once) and on a signal to stop it
// kills them.
func (p *parent) waitForOrphans(ctx context.Context, limit time.Duration) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(limit)
	patience := time.NewTicker(extendEvery)
	defer patience.Stop()
	if limit > 0 {
		p.up.tell(extension())
	}
	for rounds := 0; ; rounds++ {
		left, err := procfs.Descendants(os.Getpid())
		living := 0
		for _, s := range left {
			if !s.Dead() {
				living++
			}
		}
		if err != nil || living == 0 || rounds > 0 && time.Since(deadline) > endWait {
			return
		}
		if time.Now().After(deadline) {
			_, _ = procfs.SignalDescendants(os.Getpid(), syscall.SIGKILL)
		}
		select {
		case <-tick.C:
		case <-patience.C:
			p.up.tell(extension())
		case <-p.signals:
			deadline = time.Now()
		case e := <-p.ends:
			e.master.Close()
		case <-p.notes:
		case <-p.acks:
		case <-p.commands: // its client learns of the end
		case <-ctx.Done():
			return
		}
	}
}

// reap waits for every child: those that it started, and the orphans that come to it as subreaper.
func (p *parent) reap(ctx context.Context) error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	defer signal.Stop(children)
	for {
		for {
			var ws syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
			if err == syscall.EINTR {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
			p.reaped.add(pid, pidfd.FromWaitStatus(ws))
			p.log.Debug("reaped", fPID(pid), zap.Stringer("status", pidfd.FromWaitStatus(ws)))
		}
		select {
		case <-children:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// descends tells whether a process is one of ours.
func descends(pid int) bool {
	for range 64 {
		if pid == os.Getpid() {
			return true
		}
		s, err := procfs.ReadStat(pid)
		if err != nil || s.Parent <= 1 && os.Getpid() != 1 {
			return false
		}
		pid = s.Parent
	}
	return false
}
