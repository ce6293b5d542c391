package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"gapless/internal/control"
	"gapless/internal/notify"
	"gapless/internal/packet"
	"gapless/upgrade"
	"gapless/workerpool"

	"go.uber.org/zap"
)

// Names of entries in the store, beside those of lanes, which are "lane/" and the lane's name.
const (
	lanePrefix   = "lane/"
	workerPrefix = "worker/"
	queuePrefix  = "queue/"
	releaseEntry = privatePrefix + "release"
	stepPrefix   = privatePrefix + "step/" // and the mark of a command that runs
)

// keeper is the master's side of the store: it gives the parent what a master that comes after a sudden death must have,
// and writes the ledger. A descriptor is stored before anything depends on it; the ledger follows each change.
type keeper struct {
	address string // of the parent's notify socket
	log     *zap.Logger

	mu       sync.Mutex
	snapshot func() ledger // nil before this master is in charge, and when its charge has ended
	files    *ledgerFiles
	asked    uint64        // versions of the ledger that were asked for,
	written  uint64        // and those that are written
	turned   chan struct{} // closed and made anew when written has grown
	work     chan struct{}
}

func newKeeper(log *zap.Logger) *keeper {
	return &keeper{address: os.Getenv("NOTIFY_SOCKET"), log: log, turned: make(chan struct{}), work: make(chan struct{}, 1)}
}

// store gives the parent a copy of files under a name.
func (k *keeper) store(name string, files ...*os.File) error {
	if err := notify.Send(k.address, "FDSTORE=1\nFDPOLL=0\nFDNAME="+name, files...); err != nil {
		return fmt.Errorf("store %s with the parent: %w", name, err)
	}
	return nil
}

// remove has the parent close its copies.
func (k *keeper) remove(name string) {
	if err := notify.Send(k.address, "FDSTOREREMOVE=1\nFDNAME="+name); err != nil {
		k.log.Debug("not removed from the store", zap.String("name", name), zap.Error(err))
	}
}

// Keep is workerpool.Keeper's: it stores a worker's descriptors.
func (k *keeper) Keep(r workerpool.Record) {
	defer r.Close()
	if err := k.store(workerEntry(r.ID), r.Files...); err != nil {
		k.log.Error("A worker would not survive its master", fPID(r.PID), zap.Error(err))
	}
}

// Forget is workerpool.Keeper's: a worker has gone.
func (k *keeper) Forget(id workerpool.ID) { k.remove(workerEntry(id)) }

func workerEntry(id workerpool.ID) string {
	return fmt.Sprintf("%s%d.%d.%d", workerPrefix, id.Generation, id.Slot, id.PID)
}

func queueEntry(generation int) string { return queuePrefix + strconv.Itoa(generation) }

// keepRelease stores what the workers are made of.
func (k *keeper) keepRelease(r *release) error {
	files := []*os.File{r.dir}
	if r.exe != nil {
		files = append(files, r.exe)
	}
	return k.store(releaseEntry, files...)
}

// guardPatience bounds the wait for a parent that is busy.
const guardPatience = 10 * time.Second

// Guard is guardian's. The store takes nothing without a descriptor, so it gets one that means nothing. It returns when the
// parent knows the mark: what it reads of a master after that one's death it may take for a stranger's.
func (k *keeper) Guard(mark string) error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	if err := k.store(stepPrefix+mark, null); err != nil {
		return err
	}
	return notify.Barrier(k.address, guardPatience)
}

// Unguard is guardian's.
func (k *keeper) Unguard(mark string) { k.remove(stepPrefix + mark) }

// begin starts the ledger with its first version, which is with the parent when begin returns.
func (k *keeper) begin(first ledger) error {
	files, err := newLedgerFiles()
	if err != nil {
		return err
	}
	if err := files.write(first); err != nil {
		files.close()
		return err
	}
	for i, f := range files.files {
		if err := k.store(ledgerName+strconv.Itoa(i), f); err != nil {
			files.close()
			return err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.files = files
	return nil
}

// follow has the ledger tell what snapshot returns, from now on.
func (k *keeper) follow(snapshot func() ledger) {
	k.mu.Lock()
	if k.files != nil {
		k.snapshot = snapshot
	}
	k.mu.Unlock()
	k.Changed()
}

// Changed asks for a new version of the ledger, soon. It never blocks.
func (k *keeper) Changed() {
	k.mu.Lock()
	k.asked++
	k.mu.Unlock()
	select {
	case k.work <- struct{}{}:
	default:
	}
}

// Sync returns when the ledger tells all that is so now.
func (k *keeper) Sync() {
	k.mu.Lock()
	k.asked++
	want := k.asked
	k.mu.Unlock()
	select {
	case k.work <- struct{}{}:
	default:
	}
	for {
		k.mu.Lock()
		done, turned := k.snapshot == nil || k.written >= want, k.turned
		k.mu.Unlock()
		if done {
			return
		}
		<-turned
	}
}

// run writes the ledger until ctx ends. Changes that come while it writes are one version.
func (k *keeper) run(ctx context.Context) error {
	defer k.end()
	for {
		select {
		case <-k.work:
			k.turn()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// end lets nobody wait for a version that nobody writes.
func (k *keeper) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.snapshot = nil
	close(k.turned)
	k.turned = make(chan struct{})
	if k.files != nil {
		k.files.close()
		k.files = nil
	}
}

// turn writes one version.
func (k *keeper) turn() {
	k.mu.Lock()
	snapshot, files, asked := k.snapshot, k.files, k.asked
	k.mu.Unlock()
	if snapshot != nil {
		if err := files.write(snapshot()); err != nil {
			k.log.Error("This master would not be survived as it is now", zap.Error(err))
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.written = asked
	close(k.turned)
	k.turned = make(chan struct{})
}

// keptFiles are the files of a Handover whose lanes the parent keeps, too.
type keptFiles struct {
	upgrade.Handover
	keeper *keeper
}

// AddFile keeps a file for the next master, whichever way that one comes.
func (f keptFiles) AddFile(name string, file *os.File) error {
	if strings.HasPrefix(name, lanePrefix) || strings.HasPrefix(name, previewPrefix) || name == ticketsFile {
		if err := f.keeper.store(name, file); err != nil {
			return err
		}
	}
	return f.Handover.AddFile(name, file)
}

// snapshot is the ledger as it is now. It is called by the keeper alone, and by whoever begins.
func (m *master) snapshot() ledger {
	l := ledger{Version: ledgerVersion, Generation: m.generation, Slots: len(m.pool.Slots()), Config: m.cfg,
		Inventory: m.inv.State(), Workers: m.pool.Records(), Stopping: m.state.get() == Stopping}
	for _, q := range m.queues.all() {
		l.Queues = append(l.Queues, q.generation)
	}
	m.account.Lock()
	defer m.account.Unlock()
	l.Revision, l.Next, l.Wanted, l.Operation = m.account.revision, m.account.next, m.account.wanted, m.account.operation
	l.Configured, l.Acked = m.account.configured, m.link.recall()
	l.After, l.AfterFailed = m.account.after, m.account.afterFailed
	l.Facts = append([]facts{*m.facts.Load()}, peopled(m.account.older, l.Workers)...)
	if s := m.stage.Load(); s != nil {
		workers, known := s.kept()
		l.Workers, l.Facts = append(l.Workers, workers...), append(l.Facts, known...)
	}
	l.Recipe = m.pinned.Load().record()
	return l
}

// note tells the ledger what the goroutine of govern knows.
func (m *master) note() {
	m.account.Lock()
	m.account.operation = nil
	if m.op != nil {
		m.account.operation = m.op.record()
	}
	m.account.Unlock()
	m.syncAccount()
	m.keep.Changed()
}

// syncAccount copies what belongs to the goroutine of govern to where the keeper reads it.
func (m *master) syncAccount() {
	m.account.Lock()
	defer m.account.Unlock()
	m.account.revision, m.account.next, m.account.wanted, m.account.older = m.revision, m.next, m.wanted, m.older
	m.account.configured = m.configured
	m.account.after, m.account.afterFailed = m.after, m.afterFailed
}

// pin makes a launcher the one for the workers to come, also for those of a master that follows after a sudden death.
func (m *master) pin(l *launcher) error {
	m.pinned.Store(l)
	return m.keep.keepRelease(l.release)
}

// account is what the ledger tells of the master itself.
type account struct {
	sync.Mutex
	revision, next     int
	wanted, configured int
	older              []facts
	operation          *operationRecord
	after              []afterRecord
	afterFailed        string
}

// record is how this launcher's workers are started.
func (l *launcher) record() recipeRecord {
	return recipeRecord{Dir: l.release.dirName, Path: l.release.path, Argv: l.release.argv, Env: l.env, UID: l.ids.uid, GID: l.ids.gid,
		Groups: l.ids.groups, Umask: l.umask, NoFile: l.nofile, Blocking: l.blocking, Adapter: l.inject.mode()}
}

// launcher rebuilds one from what was recorded.
func (r recipeRecord) launcher(files []*os.File) (*launcher, error) {
	if len(files) == 0 {
		return nil, errors.New("the store holds no release")
	}
	rel := &release{dirName: r.Dir, dir: files[0], path: r.Path, argv: r.Argv}
	if len(files) > 1 {
		rel.exe = files[1]
		id, err := identify(rel.exe)
		if err != nil {
			packet.CloseAll(files)
			return nil, fmt.Errorf("release in the store: %w", err)
		}
		rel.id = id
	}
	return &launcher{release: rel, env: r.Env, ids: credentials{uid: r.UID, gid: r.GID, groups: r.Groups}, umask: r.Umask, nofile: r.NoFile, blocking: r.Blocking}, nil
}

// firstLedger is the ledger of a master that is about to take charge: what it has, and what it has been left.
func (m *master) firstLedger(inv *upgrade.Inventory, in inheritance) ledger {
	l := ledger{Version: ledgerVersion, Generation: m.generation, Revision: m.revision, Next: max(m.next, in.legacy.Next), Wanted: m.started,
		Configured: m.configured, Acked: in.legacy.Acked,
		Slots: len(m.pool.Slots()), Facts: append([]facts{*m.facts.Load()}, in.legacy.Facts...), Config: m.cfg, Inventory: inv.State(),
		Workers:   append(m.pool.Records(), in.workers...),
		Operation: &operationRecord{Kind: control.KindUpgrade, Target: m.generation, Began: in.legacy.Began, Answer: in.legacy.Answer, Done: true}}
	for _, q := range append(m.queues.all(), in.queues...) {
		l.Queues = append(l.Queues, q.generation)
	}
	l.After = m.afterwards(in.legacy.After)
	l.Recipe = m.pinned.Load().record()
	return l
}
