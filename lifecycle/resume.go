package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gapless/internal/control"
	"gapless/internal/packet"
	"gapless/internal/procfs"
	"gapless/upgrade"
	"gapless/workerpool"

	"go.uber.org/zap"
)

// TakesPlace tells whether this process was started as a master in place of a dead one: then ResumeMaster is to be run,
// without a look at the command line.
func TakesPlace() bool { return IsMaster() && os.Getenv(storeVariable) != "" }

// ResumeMaster is RunMaster for such a process. It goes by the configuration that the dead master had: what the files say
// now is for the next upgrade, and may be broken. newLog makes the logger that the configuration asks for.
func ResumeMaster(version string, reread func() (Config, error), newLog func(Config) (*zap.Logger, error)) error {
	left, err := openHeritage()
	if err != nil {
		return err
	}
	if left == nil {
		return errors.New("there is no master whose place this one could take")
	}
	cfg := left.Config
	cfg.Version = version
	log, err := newLog(cfg)
	if err != nil {
		left.store.close()
		return err
	}
	return runMaster(cfg, left, reread, log)
}

// heritage is what a master finds that is started in place of a dead one.
type heritage struct {
	ledger
	store estate
}

// openHeritage returns nil in a master that follows nobody, or a living one.
func openHeritage() (*heritage, error) {
	store, err := openEstate(storeVariable)
	if store == nil || err != nil {
		return nil, err
	}
	var pages []*os.File
	for i := range ledgerCount {
		pages = append(pages, store.take(ledgerName+strconv.Itoa(i), 1)...)
	}
	defer packet.CloseAll(pages)
	h := &heritage{store: store}
	if h.ledger, err = readLedger(pages); err != nil {
		store.close()
		return nil, err
	}
	return h, nil
}

// records returns the workers with their descriptors. One whose descriptors are missing has gone; one that is only in the
// store never met a client, as the ledger comes before that, and is ended.
func (h *heritage) records() (records []workerpool.Record, unknown []workerpool.Record) {
	for _, r := range h.Workers {
		if len(h.store[workerEntry(r.ID)]) != len(r.Kinds) {
			continue
		}
		r.Files = h.store.take(workerEntry(r.ID), len(r.Kinds))
		records = append(records, r)
	}
	for name := range h.store {
		var r workerpool.Record
		if id, ok := strings.CutPrefix(name, workerPrefix); ok && readID(id, &r.ID) {
			r.State, r.Started, r.Since = workerpool.Killing, time.Now(), time.Now()
			r.Reason = "its master was killed while it started it"
			r.Files = h.store.take(name, len(h.store[name])) // the first one is the pidfd
			r.Kinds = []string{"pidfd"}
			unknown = append(unknown, r)
		}
	}
	return records, unknown
}

func readID(text string, id *workerpool.ID) bool {
	_, err := fmt.Sscanf(text, "%d.%d.%d", &id.Generation, &id.Slot, &id.PID)
	return err == nil
}

// lanes returns the lanes' descriptors, and completes the state of the inventory where the ledger is a moment behind: a
// lane that it does not list was opened last, and is the last of the kernel's group.
func (h *heritage) lanes(workers []workerpool.Record) (map[string]*os.File, error) {
	files := make(map[string]*os.File)
	var names []string
	for name := range h.store {
		if lane, ok := strings.CutPrefix(name, lanePrefix); ok {
			names = append(names, lane)
		}
	}
	for _, lane := range names {
		if f := h.store.take(lanePrefix+lane, 1); f != nil {
			files[lane] = f[0]
		}
	}
	held := make(map[string]bool)
	for _, w := range workers {
		for _, lane := range w.Lanes {
			held[lane] = true
		}
	}
	for i := range h.Inventory.Addresses {
		a := &h.Inventory.Addresses[i]
		listed := make(map[string]bool)
		for n := range a.Lanes {
			l := &a.Lanes[n]
			listed[l.Name] = true
			if l.State == upgrade.LaneFree && held[l.Name] {
				l.State = upgrade.LaneStarting
			}
		}
		var late []int
		for _, lane := range slices.Sorted(maps.Keys(files)) {
			address, number, _ := strings.Cut(lane, "#")
			if n, err := strconv.Atoi(number); err == nil && address == a.Address.Name && !listed[lane] {
				late = append(late, n)
			}
		}
		slices.Sort(late)
		for _, n := range late {
			lane := a.Address.Name + "#" + strconv.Itoa(n)
			inode, err := procfs.SocketInode(files[lane])
			if err != nil {
				return files, fmt.Errorf("lane %s of the store: %w", lane, err)
			}
			a.Lanes = append(a.Lanes, upgrade.LaneRecord{Name: lane, Inode: inode})
			a.Next = max(a.Next, n+1)
		}
	}
	return files, nil
}

// resume takes the place of a dead master: its generation goes on, with the workers that live. With an error nothing has
// changed, and the parent tries again.
func (m *master) resume(charge chan struct{}) error {
	h := m.left
	defer h.store.close()
	m.aimed.Store(int64(h.Wanted))
	m.revision, m.started, m.configured = h.Revision, h.Wanted, h.Configured
	m.want(h.Wanted)
	m.link.remember(h.Acked...)
	if len(h.Facts) == 0 {
		return errors.New("the ledger tells nothing of its own generation")
	}
	known := h.Facts[0]
	known.MasterPID, known.Binary, known.Version = os.Getpid(), ownBinary(), m.cfg.Version
	m.facts.Store(&known)
	m.limits.since = known.Began // it is no other release
	m.charge(h.Facts[1:])

	l, err := h.Recipe.launcher(h.store[releaseEntry])
	delete(h.store, releaseEntry)
	if err != nil {
		return err
	}
	if err := m.resumeQueues(); err != nil {
		return err
	}
	if err := m.openPreview(); err != nil {
		m.log.Error("Nothing can be previewed", zap.Error(err)) // no reason to leave a server without a master
	}
	l.generation, l.revision, l.handoff, l.tickets, l.crowded = m.generation, m.revision, m.queues.own.recv, m.tickets.f, m.crowded
	l.inject = newInjection(h.Recipe.Adapter, l.release, l.ids, m.log)
	if err := m.pin(l); err != nil {
		return err
	}
	records, unknown := h.records()
	lanes, err := h.lanes(records)
	if err != nil {
		packet.CloseAll(slices.Collect(maps.Values(lanes)))
		return err
	}
	if m.inv, err = upgrade.Restore(m.files, h.Inventory, lanes, m.inventoryOptions()); err != nil {
		return err
	}
	var names []string
	for _, a := range m.inv.Addresses() {
		names = append(names, a.Name)
	}
	if err := m.flip.Ready(); err != nil { // or tableflip would refuse upgrades
		return errors.Join(err, m.inv.Close())
	}
	m.gate = newGate(m.generation, m.inv, names, m.cfg.Settle, m.log)
	m.newPool(l, nil)
	if err := m.state.to(Serving); err != nil {
		return err
	}
	// From here on what fails is logged, and as much as can be goes on: nobody else is there.
	var infos []workerpool.Info
	for i := range records {
		infos = append(infos, records[i].Info)
	}
	if err := m.gate.resume(infos); err != nil {
		m.log.Error("New connections cannot be steered", zap.Error(err))
	}
	m.queues.inherit(nil, m.takesHandoffs, m.living)
	slots, order := h.Slots, m.order("a newer worker serves", false)
	if h.Stopping {
		slots, order = 0, m.order("gapless stops", true)
	}
	m.pool.Resume(slots, workerpool.Recipe{Revision: m.revision, Launch: l.launch}, append(records, unknown...), order)
	m.account.operation = h.Operation
	m.after, m.afterFailed = h.After, h.AfterFailed
	m.syncAccount()
	if err := m.keep.begin(m.snapshot()); err != nil {
		m.log.Error("This master would not be survived", zap.Error(err))
	}
	m.keep.follow(m.snapshot)
	if op := h.Operation; op != nil && !op.Done && reloads(op.Kind) {
		m.herald.failure = oneLine(killedMeanwhile(op, m.generation), maxFailure)
	}
	err = m.herald.say("READY=1\nMAINPID="+strconv.Itoa(os.Getpid())+"\n"+generationField+"="+strconv.Itoa(m.generation), m.detail(m.controlState()))
	if err != nil {
		m.log.Error("The parent does not hear this master", zap.Error(err))
	}
	for name := range h.store { // what the dead master had no time to remove
		if !strings.HasPrefix(name, privatePrefix) {
			m.keep.remove(name)
		}
	}
	close(charge)
	m.log.Warn("Took the place of a master that died; its workers serve on", fPID(os.Getpid()), zap.Int("workers", len(records)),
		zap.Duration("took", m.sinceBegan()))
	if h.Stopping {
		m.stop = &linkMessage{Signal: syscall.SIGTERM}
	} else {
		m.watch.start()
	}
	m.concludes(h.Operation)
	return nil
}

// resumeQueues takes over the handoff queues.
func (m *master) resumeQueues() error {
	var all []queue
	for _, generation := range m.left.Queues {
		ends := m.left.store.take(queueEntry(generation), 2)
		if ends == nil {
			continue
		}
		all = append(all, queue{generation: generation, recv: ends[0], send: ends[1]})
	}
	if len(all) == 0 || all[0].generation != m.generation {
		if err := m.openQueue(); err != nil {
			return err
		}
	} else {
		m.queues.init(m.log, all[0])
		all = all[1:]
	}
	m.queues.older = all
	return nil
}

// masterKilled is why an operation ended whose master was killed.
const masterKilled = "the master was killed meanwhile"

func killedMeanwhile(op *operationRecord, generation int) string {
	return fmt.Sprintf("%s aborted: %s; generation %d serves on", op.Kind, masterKilled, generation)
}

// concludes answers those who wait for what the dead master had under way.
func (m *master) concludes(op *operationRecord) {
	if op == nil {
		return
	}
	if op.Kind == control.KindAfterPromote {
		m.afterInterrupted(op)
		m.note() // nothing is under way any more
		return
	}
	r := control.Result{OK: op.Done, Generation: m.generation, Revision: m.revision, TookSeconds: m.began.Sub(op.Began).Seconds()}
	e := control.Event{Kind: op.Kind, Generation: cmp.Or(op.Target, m.generation), State: "done", TookSeconds: r.TookSeconds}
	if !op.Done {
		e.State, e.Reason = "aborted", masterKilled
		r.Reason = killedMeanwhile(op, m.generation)
		if op.Kind == control.KindUpgrade {
			m.log.Error("Upgrade aborted; this generation serves on", zap.Int("to_generation", op.Target), zap.String("reason", e.Reason))
		} else {
			m.log.Error("The "+op.Kind+" failed; what served before serves on", zap.String("reason", e.Reason))
		}
	}
	if op.Done && op.Kind == control.KindUpgrade {
		m.log.Info("Upgrade complete", fPID(os.Getpid()), zap.Duration("took", m.began.Sub(op.Began)))
	}
	m.emit(e)
	for _, seq := range op.Answer {
		m.link.answer(seq, r)
	}
	for _, seq := range op.Undo {
		m.link.answer(seq, control.Result{OK: !op.Done, Generation: m.generation, Revision: m.revision, Reason: r.Reason})
	}
	m.note() // nothing is under way any more
}

// resumed is the life of such a master.
func (m *master) resumed(ctx context.Context, charge chan struct{}) error {
	if err := m.resume(charge); err != nil {
		_ = m.state.to(Over)
		return fmt.Errorf("take over generation %d: %w", m.generation, err)
	}
	return m.govern(ctx)
}
