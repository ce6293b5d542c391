package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"gapless/internal/cgroup"
	"gapless/internal/control"
	"gapless/internal/packet"
	"gapless/internal/procfs"
	"gapless/upgrade"
	"gapless/workerpool"

	"go.uber.org/zap"
)

// start brings the generation up: release, lanes, previous steps, workers. On return all workers are ready.
func (m *master) start(ctx context.Context) error {
	if err := m.openQueue(); err != nil {
		return err
	}
	l, err := m.resolve(m.cfg, 1)
	if err != nil {
		return err
	}
	// The first master opens the addresses before anything runs: a port in use is known at once.
	var names []string
	if m.pred == nil {
		if names, err = m.claim(); err != nil {
			return err
		}
		if m.cfg.Keep > 0 {
			if err := steerable(m.inv); err != nil {
				return fmt.Errorf("--keep: a new generation %w; leave --keep out", err)
			}
		}
		if err := errors.Join(m.previewable(), m.openPreview()); err != nil {
			return err
		}
		if err := m.introduce(); err != nil {
			return err
		}
	} else {
		// Or who changed the port in the settings file would take it for changed.
		if err := upgrade.Unchanged(m.cfg.Addresses, m.pred.Offer().Addresses); err != nil {
			return err
		}
		if err := m.openPreview(); err != nil {
			return err
		}
		for _, a := range m.cfg.Addresses {
			names = append(names, a.Name)
		}
	}
	if m.cfg.Readiness.Mode == workerpool.ReadyHTTP && m.pred == nil {
		if err := m.askable(); err != nil {
			return err
		}
	}
	m.gate = newGate(m.generation, m.inv, names, m.cfg.Settle, m.log)
	m.gate.revive()
	if err := m.steps(ctx, m.cfg, l, control.KindUpgrade); err != nil {
		return err
	}
	workers := m.cfg.Workers
	if m.pred != nil {
		// What was scaled to since stays, unless the configuration says another number than it did.
		if o := m.pred.Offer(); o.Workers > 0 && o.Configured == workers {
			workers = o.Workers
		}
		if err := m.borrow(ctx, names, workers); err != nil {
			return err
		}
	}
	m.started = workers
	m.aimed.Store(int64(workers))
	var ready atomic.Int64
	m.newPool(l, func() {
		m.progress(upgrade.Progress{Phase: upgrade.PhaseWorkers, Ready: int(ready.Add(1)), Total: workers, Limit: m.cfg.StartTimeout})
	})
	m.progress(upgrade.Progress{Phase: upgrade.PhaseWorkers, Total: workers, Limit: m.cfg.StartTimeout})
	if err := m.pool.Start(ctx, workers); err != nil {
		return err
	}
	_ = m.prober.Rest() // its helper, if it needed one, is for starts
	return nil
}

// newPool makes the pool of this generation's workers. ready is told of each that is ready before this master serves.
func (m *master) newPool(l *launcher, ready func()) {
	// Also where no worker of this generation needs them: those of older ones may.
	out, errs := workerpool.NewLines(os.Stdout), workerpool.NewLines(os.Stderr)
	m.lines = []*workerpool.Lines{out, errs}
	m.pool = workerpool.New(workerpool.Config{
		Generation: m.generation, Spawner: m.spawner, Prober: m.prober, Listen: m.listen,
		Asker: (*asker)(m), Gate: m.gate, Launch: l.launch,
		Readiness: m.cfg.Readiness, StartTimeout: m.cfg.StartTimeout, StopSignal: m.cfg.StopSignal, Watchdog: m.cfg.Watchdog,
		Log: m.events, Owns: ownsSender, Out: out, Err: errs, Prefix: m.cfg.LogPrefix, Keeper: m.keep,
		Observe: func(e workerpool.Event) {
			m.observe(e)
			switch {
			case m.state.get() != Starting:
			case m.presented.Load():
				m.seats(e)
			case e.State == workerpool.Ready:
				ready()
			}
		},
	})
	m.pooled.Store(true)
}

// resolve finds the release as it is now: directory, command, environment and credentials, for one revision.
func (m *master) resolve(cfg Config, revision int) (*launcher, error) {
	rel, err := resolveRelease(cfg.Chdir, cfg.Command)
	if err != nil {
		return nil, err
	}
	ids, err := resolveCredentials(cfg.User, cfg.Group)
	if err != nil {
		return nil, err
	}
	environ, err := readEnvFiles(os.Environ(), cfg.EnvFiles)
	if err != nil {
		return nil, err
	}
	l := &launcher{release: rel, env: workerEnviron(environ, rel.dirName), generation: m.generation, revision: revision,
		handoff: m.queues.own.recv, tickets: m.tickets.f, ids: ids, umask: cfg.Umask, nofile: cfg.NoFile, blocking: cfg.Blocking, crowded: m.crowded}
	l.inject = newInjection(cfg.Adapter, rel, ids, m.log)
	m.facts.Store(&facts{Generation: m.generation, Revision: revision, MasterPID: os.Getpid(), Began: m.began,
		ReleaseDir: rel.dirName, Command: cfg.Command, Binary: ownBinary(), Version: cfg.Version})
	return l, m.pin(l)
}

// crowded says whether there are more workers than CPUs. It is asked at each worker's start, so the CPUs are counted once.
func (m *master) crowded() bool {
	m.counted.Do(func() { m.cpus = cgroup.Reader{}.CPUs() })
	return int(m.aimed.Load()) > m.cpus
}

// steps runs, in an operation of that kind, the previous steps for a launcher's workers.
func (m *master) steps(ctx context.Context, cfg Config, l *launcher, kind string) error {
	if len(cfg.BeforeStart) == 0 {
		return nil
	}
	m.progress(upgrade.Progress{Phase: upgrade.PhaseSteps})
	m.emit(control.Event{Kind: kind, Generation: m.generation, State: "steps"})
	env := append(l.env[:len(l.env):len(l.env)], "GAPLESS_GENERATION="+strconv.Itoa(l.generation), "GAPLESS_REVISION="+strconv.Itoa(l.revision))
	return runSteps(ctx, cfg.BeforeStart, cfg.BeforeStartTimeout, l.release.dirName, env, m.keep, m.log)
}

func (m *master) progress(p upgrade.Progress) {
	if m.pred != nil {
		m.pred.Progress(p)
	}
}

// claim opens the addresses of the first master.
func (m *master) claim() (names []string, err error) {
	opts := m.inventoryOptions()
	if opts.Activated, m.inv, err = m.takeBequest(opts); err != nil {
		return nil, err
	}
	if m.inv == nil {
		m.inv = upgrade.NewInventory(m.files, opts)
	}
	for _, a := range m.cfg.Addresses {
		if err := m.claimOne(a); err != nil {
			return nil, errors.Join(err, m.unlink())
		}
		names = append(names, a.Name)
	}
	if left := m.inv.Leave(); len(left) > 0 {
		m.log.Warn("Sockets that no --listen fd:NAME asks for are left alone", zap.Strings("names", left))
	}
	return names, nil
}

func (m *master) inventoryOptions() upgrade.InventoryOptions {
	return upgrade.InventoryOptions{Logger: m.log, Owner: procfs.PortOwner, Leftovers: leftovers, Changed: m.keep.Changed}
}

// borrow asks the master in charge for lanes.
func (m *master) borrow(ctx context.Context, names []string, workers int) error {
	for _, name := range names {
		lanes, files, err := m.pred.Lanes(ctx, name, workers)
		if err != nil {
			return err
		}
		var sockets []workerpool.Socket
		for i, f := range files {
			inode, err := procfs.SocketInode(f)
			if err != nil {
				return fmt.Errorf("lane %s: %w", lanes[i], err)
			}
			sockets = append(sockets, workerpool.Socket{Name: name, Lane: lanes[i], Inode: inode, File: f})
		}
		m.gate.grant(name, sockets, len(lanes) < workers)
	}
	return nil
}

// ownsSender tells whether a process may speak for a worker: the worker itself or what descends from it.
func ownsSender(worker, sender int) bool {
	for range 32 { // deeper trees are none of a server's
		if sender == worker {
			return true
		}
		if sender <= 1 {
			return false
		}
		s, err := procfs.ReadStat(sender)
		if err != nil {
			return false
		}
		if s.Group == worker {
			return true // also when the process in between has gone
		}
		sender = s.Parent
	}
	return false
}

// The kinds of parcels that a master leaves to the next.
const (
	parcelMaster    = "master"
	parcelInventory = "inventory"
	parcelWorker    = "worker"
	parcelQueue     = "queue"
	parcelFacts     = "facts" // from a master that is not in charge yet
)

// legacy is the parcel of the master itself.
type legacy struct {
	Next   int       `json:"next"`             // the number of the next generation
	Acked  []uint64  `json:"acked,omitempty"`  // what has been acted on
	Answer []uint64  `json:"answer,omitempty"` // the commands that wait for the upgrade's outcome
	Began  time.Time `json:"began"`            // the upgrade
	Facts  []facts   `json:"facts"`            // of the generations that still have workers
	// After is what is still to run when older generations are gone.
	After []afterRecord `json:"after,omitempty"`
	// Preview names the file of the preview's socket; "": there is none.
	Preview string `json:"preview,omitempty"`
}

// facts are what status tells of a generation beside its workers.
type facts struct {
	Generation int       `json:"generation"`
	Revision   int       `json:"revision"`
	MasterPID  int       `json:"master_pid"`
	Began      time.Time `json:"began"`
	ReleaseDir string    `json:"release_dir"`
	Command    []string  `json:"command"`
	Binary     string    `json:"binary"`
	Version    string    `json:"version"`
}

type queueParcel struct {
	Generation int `json:"generation"`
}

// inheritance is what the parcels hold.
type inheritance struct {
	legacy  legacy
	state   upgrade.InventoryState
	workers []workerpool.Record
	queues  []queue
}

func unpack(parcels []upgrade.Parcel) (in inheritance, err error) {
	for _, p := range parcels {
		switch p.Kind {
		case parcelMaster:
			err = p.Open(&in.legacy)
		case parcelInventory:
			err = p.Open(&in.state)
		case parcelWorker:
			var r workerpool.Record
			err = p.Open(&r)
			r.Files = p.Files
			in.workers = append(in.workers, r)
		case parcelQueue:
			var q queueParcel
			if err = p.Open(&q); err == nil && len(p.Files) == 2 {
				in.queues = append(in.queues, queue{generation: q.Generation, recv: p.Files[0], send: p.Files[1]})
			}
		default:
			packet.CloseAll(p.Files) // of a newer or older version; it can do without, or would not have sent it
		}
		if err != nil {
			return in, err
		}
	}
	return in, nil
}

// takeCharge commits the upgrade: with an error nothing has changed hands.
func (m *master) takeCharge(ctx context.Context, charge chan struct{}) error {
	var in inheritance
	var inv *upgrade.Inventory
	if err := m.present(); err != nil {
		return err
	}
	err := m.pred.Commit(ctx, func(parcels []upgrade.Parcel) (err error) {
		if in, err = unpack(parcels); err != nil {
			return err
		}
		if inv, err = upgrade.Restore(m.files, in.state, m.gate.received(), m.inventoryOptions()); err != nil {
			return err
		}
		// Should this master die from here on, another one takes its place, and not that of the one before.
		if err := m.keep.begin(m.firstLedger(inv, in)); err != nil {
			return err
		}
		return m.herald.say("READY=1\nMAINPID="+strconv.Itoa(os.Getpid())+"\n"+generationField+"="+strconv.Itoa(m.generation), m.detail(control.StateServing))
	})
	if err != nil {
		return err
	}
	// There is no way back any more: what fails now is logged, and as much as can be goes on.
	if err := m.state.to(Serving); err != nil {
		return err
	}
	m.inv = inv
	m.next = max(m.next, in.legacy.Next)
	m.charge(in.legacy.Facts)
	m.link.remember(in.legacy.Acked...)
	var old []workerpool.Info
	for i := range in.workers {
		old = append(old, in.workers[i].Info)
	}
	if err := m.gate.takeCharge(inv, old); err != nil {
		m.log.Error("New connections cannot be steered", zap.Error(err))
	}
	m.pool.Adopt(in.workers)
	m.queues.inherit(in.queues, m.takesHandoffs, m.living)
	m.dropPreview(in.legacy.Preview)
	m.after = m.afterwards(in.legacy.After)
	m.want(m.started)
	m.account.operation = &operationRecord{Kind: control.KindUpgrade, Target: m.generation, Began: in.legacy.Began, Answer: in.legacy.Answer, Done: true}
	m.syncAccount()
	m.keep.follow(m.snapshot)
	close(charge)
	m.watch.start()
	m.log.Info("Upgrade complete", fPID(os.Getpid()), zap.Duration("took", m.sinceBegan()), zap.Int("draining", len(old)))
	took := time.Since(in.legacy.Began).Seconds()
	m.emit(control.Event{Kind: control.KindUpgrade, Generation: m.generation, State: "done", PID: os.Getpid(), TookSeconds: took})
	for _, seq := range in.legacy.Answer {
		m.link.answer(seq, control.Result{OK: true, Generation: m.generation, Revision: m.revision, TookSeconds: took})
	}
	m.note() // everybody has been told
	if !m.takesHandoffs() {
		m.queues.refuse(false)
	}
	m.pool.DrainOthers(m.order("a new generation serves", false))
	return nil
}

// takesHandoffs tells whether a worker of this generation takes connections from its queue.
func (m *master) takesHandoffs() bool {
	for _, w := range m.pool.Workers() {
		if w.Generation == m.generation && w.State == workerpool.Ready && w.Handoff {
			return true
		}
	}
	return false
}

// living returns the generations that have workers, once for each of those.
func (m *master) living() (generations []int) {
	for _, w := range m.pool.Workers() {
		generations = append(generations, w.Generation)
	}
	return generations
}

// order is the order to drain. Unless everything stops, the workers get this generation's queue for their idle
// connections.
func (m *master) order(why string, stop bool) workerpool.Order {
	o := workerpool.Order{Reason: why, Stop: stop, Timeout: m.cfg.DrainTimeout, Extra: m.cfg.DrainExtra, Spread: m.cfg.CloseSpread}
	if !stop {
		o.Queue = m.queues.target
	}
	return o
}
