package lifecycle

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gapless/internal/notify"
	"gapless/internal/packet"
	"gapless/internal/pidfd"
	"gapless/internal/procfs"

	"go.uber.org/zap"
)

// The pause before a dead master's place is taken: none at first, then twice as long each time.
const (
	restartFirst = 100 * time.Millisecond
	restartMost  = 30 * time.Second
	// restartStable is how long a master must have been in charge for its death to be the first in a row.
	restartStable = time.Minute
)

// masterBase is the number of the first descriptor of the store in a master that gets it: tableflip uses 3 and 4, and the
// link is 5.
const (
	masterLinkFD  = 5
	masterStoreFD = 6
)

// restartPause is the pause before the nth start in a row, by up to a tenth shorter by chance.
func restartPause(n int, random float64) time.Duration {
	if n <= 1 {
		return 0
	}
	d := restartMost
	if n-2 < 16 {
		d = min(restartMost, restartFirst<<(n-2))
	}
	return d - time.Duration(random*float64(d)/10)
}

// restart has another master take the place of the dead one in charge, soon. false: it had its reasons to end, or there is
// nothing to take over.
func (p *parent) restart() bool {
	dead := p.orphaned
	p.endSteps(dead.PID())
	if !p.inCharge || p.killed || p.status == 0 || !p.store.has(ledgerName+"0", dead.PID()) {
		return false
	}
	if p.restartC != nil { // one is planned
		return true
	}
	p.deaths++
	pause := restartPause(p.deaths, rand.Float64())
	p.log.Error("The master has died; another one takes its place", fPID(dead.PID()), fGeneration(dead.generation),
		zap.Int("status", p.status), zap.Duration("pause", pause))
	p.up.follow(word{status: "no master is in charge"})
	p.restartC = time.After(pause)
	return true
}

// startAgain starts the master in the dead one's place; true: that is given up.
func (p *parent) startAgain() bool {
	p.restartC = nil
	if p.orphaned == nil {
		return false
	}
	proc, err := p.spawnWithStore(p.orphaned)
	if err != nil {
		p.log.Error("No master can be started; trying again", zap.Error(err))
		return !p.restart()
	}
	m := p.adopt(proc, p.orphaned.generation)
	m.exe, p.orphaned.exe = p.orphaned.exe, nil
	m.heir = true
	p.watchOver(m, undecidedMaster)
	return false
}

// spawnWithStore starts the binary that the dead master ran, whatever is on disk now.
func (p *parent) spawnWithStore(dead *process) (*pidfd.Process, error) {
	contents, fds := p.store.contents(dead.PID())
	list, err := contents.pack()
	if err != nil {
		return nil, err
	}
	defer list.Close()
	listFD, err := packet.Descriptor(list)
	if err != nil {
		return nil, err
	}
	if dead.exe == nil {
		return p.spawn(p.cfg.Binary, storeVariable, []int{listFD}, fds)
	}
	// The descriptors are put into their places before the binary is looked up, so its own number must be beyond all of
	// those, and beyond where they are moved to on the way.
	beyond := masterStoreFD + len(fds) + 1
	exe, err := dupBeyond(dead.exe, 2*max(beyond, slices.Max(append(fds, listFD)))+16)
	if err != nil {
		return nil, err
	}
	defer notify.CloseFDs([]int{exe})
	return p.spawn("/proc/self/fd/"+strconv.Itoa(exe), storeVariable, []int{listFD}, fds)
}

// spawnActivated starts the first master, with the sockets that came from the service manager, named by a manifest as the
// store's are.
func (p *parent) spawnActivated(files []*os.File) (*pidfd.Process, error) {
	if len(files) == 0 {
		return p.spawn(p.cfg.Binary, "")
	}
	var m manifest
	var fds []int
	for _, f := range files {
		fd, err := packet.Descriptor(f)
		if err != nil {
			return nil, fmt.Errorf("socket %s from the service manager: %w", f.Name(), err)
		}
		m.Entries = append(m.Entries, manifestEntry{f.Name(), 1})
		fds = append(fds, fd)
	}
	list, err := m.pack()
	if err != nil {
		return nil, err
	}
	defer list.Close()
	listFD, err := packet.Descriptor(list)
	if err != nil {
		return nil, err
	}
	return p.spawn(p.cfg.Binary, activatedVariable, []int{listFD}, fds)
}

// spawn starts a master. Behind the link it inherits what is given, and variable tells it so.
func (p *parent) spawn(path, variable string, more ...[]int) (*pidfd.Process, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	link, err := packet.Descriptor(p.linkEnd)
	if err != nil {
		return nil, err
	}
	nullFD := null.Fd()
	files := []uintptr{nullFD, os.Stdout.Fd(), os.Stderr.Fd(), nullFD, nullFD, uintptr(link)}
	for _, fds := range more {
		for _, fd := range fds {
			files = append(files, uintptr(fd))
		}
	}
	env := masterEnviron(os.Environ(), p.sock.Address(), masterLinkFD)
	if variable != "" {
		env = append(env, variable+"="+strconv.Itoa(masterStoreFD))
	}
	if p.up.vault.capacity > 0 {
		env = append(env, keptVariable+"=1")
	}
	proc, err := pidfd.Start(path, append([]string{p.cfg.Binary}, p.cfg.Args...), &syscall.ProcAttr{
		Env: env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, fmt.Errorf("start the master: %w", err)
	}
	return proc, nil
}

// holdBinary keeps the binary that a master runs, for the case that it dies.
func (p *parent) holdBinary(m *process) {
	if m.exe != nil {
		return
	}
	f, err := openPinned("/proc/" + strconv.Itoa(m.PID()) + "/exe")
	if errors.Is(err, os.ErrNotExist) {
		return // it is dead by now, as one with a wrong setting is at once, and says so itself
	}
	if err != nil {
		p.log.Warn("The master's binary cannot be held; should it die, what is then on disk takes its place", fPID(m.PID()), zap.Error(err))
		return
	}
	m.exe = f
}

// release closes what the parent holds of a master.
func (m *process) release() {
	if m.exe != nil {
		m.exe.Close()
		m.exe = nil
	}
	m.Close()
}

// stored acts on a master's words about the store.
func (p *parent) stored(from *process, fields map[string]string, fds []int) {
	name := fields["FDNAME"]
	switch {
	case fields["FDSTOREREMOVE"] == "1" && strings.HasPrefix(name, vaultPrefix):
		if from == p.current {
			p.up.vault.forget(name)
		}
	case fields["FDSTOREREMOVE"] == "1":
		// An heir finds out what has gone meanwhile before it says that it is in charge.
		inCharge := from == p.current || from == p.orphaned || from.heir && p.orphaned != nil
		if !inCharge && from.announced {
			// Its predecessor has left, and was not reaped yet: what was that one's is this one's in a moment.
			from.removals = append(from.removals, name)
		}
		p.store.remove(name, from.PID(), inCharge)
	case fields["FDSTORE"] == "1":
		if err := p.store.put(name, from.PID(), fds, from == p.current || from == p.orphaned); err != nil {
			p.log.Error("Not stored", fPID(from.PID()), zap.Error(err))
		} else if lane, ok := strings.CutPrefix(name, lanePrefix); ok {
			p.up.vault.put(lane, p.store.entries[keyOf(name, 0)].fds)
		}
		return
	}
	notify.CloseFDs(fds)
}

// endSteps ends the commands of the user's that a dead master was running: nobody is left to whom their outcome matters, and
// what comes next would run beside them.
func (p *parent) endSteps(dead int) {
	for _, mark := range p.store.takeSteps(dead) {
		n, err := procfs.SignalMarked(os.Getpid(), stepVariable+"="+mark, syscall.SIGKILL)
		if err != nil {
			p.log.Error("A command of a dead master may run on", fPID(dead), zap.Error(err))
		} else if n > 0 {
			p.log.Warn("Ended a command that a master was running when it died", fPID(dead), zap.Int("processes", n))
		}
	}
}

// cleanUp ends what a master that never took charge has left, and keeps nothing of it. What comes next waits for that: the
// lanes that it had are given to others. Workers that the master in charge has made its own are left to that one: they have
// clients. What it had said of them by the time of this death has been heard when the sentinel is.
func (p *parent) cleanUp(m *process) {
	p.cleaning++
	p.leftBy = append(p.leftBy, m)
	if err := p.tellSelf(sentinelLeft); err != nil {
		p.log.Error("cannot tell what has been left", zap.Error(err))
		p.cleanLeft()
	}
}

// saidLast acts on what a master that never took charge had said before its death was seen: that it runs a command, which is
// to end with it. The rest of what it said counts no more.
func (p *parent) saidLast(pid int, fields map[string]string, fds []int) (known bool) {
	for _, m := range p.leftBy {
		if m.PID() == pid && strings.HasPrefix(fields["FDNAME"], stepPrefix) {
			p.stored(m, fields, fds)
			return true
		}
	}
	return false
}

// cleanLeft does so when all has been heard.
func (p *parent) cleanLeft() {
	if len(p.leftBy) == 0 {
		return
	}
	pid := p.leftBy[0].PID()
	p.leftBy = p.leftBy[1:]
	p.endSteps(pid)
	p.store.forget(pid)
	workers := p.store.workers(pid)
	go func() { // ends within endWait, or with govern
		endSession(pid, workers...)
		select {
		case p.cleaned <- struct{}{}:
		case <-p.over:
		}
	}()
}
