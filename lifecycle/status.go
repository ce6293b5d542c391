package lifecycle

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"

	"gapless/internal/cgroup"
	"gapless/internal/control"
	"gapless/internal/procfs"
	"gapless/upgrade"
	"gapless/workerpool"

	"go.uber.org/zap"
)

// ownBinary is what this process runs; " (deleted)" at its end says that the file has been replaced since.
func ownBinary() string {
	path, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return ""
	}
	return path
}

// charge notes what the master before knew of older generations.
func (m *master) charge(known []facts) { m.older = known }

// peopled returns what is known of the generations that still have workers: of the others nobody needs to know, and a
// master that comes after a thousand upgrades should not have to.
func peopled(known []facts, workers []workerpool.Record) []facts {
	return slices.DeleteFunc(slices.Clone(known), func(f facts) bool {
		return !slices.ContainsFunc(workers, func(w workerpool.Record) bool { return w.Generation == f.Generation })
	})
}

// sendStatus answers a command for the status. It goes as a file: thousands of workers do not fit into a packet.
func (m *master) sendStatus(seq uint64) {
	f, err := anonymousFile("gapless-status")
	if err == nil {
		defer f.Close()
		err = json.NewEncoder(f).Encode(m.status())
	}
	if err != nil {
		m.log.Error("Status cannot be told", zap.Error(err))
		return
	}
	m.link.send(linkMessage{Seq: seq, Ack: true, Status: true}, f)
}

// readStatus reads such a file, on the parent's side.
func readStatus(f *os.File) (control.Status, error) {
	var s control.Status
	err := json.NewDecoder(io.NewSectionReader(f, 0, 64<<20)).Decode(&s)
	return s, err
}

// status is what this master knows. The parent adds what only it knows.
func (m *master) status() control.Status {
	s := control.Status{State: m.controlState(), Workers: m.wanted, Detail: "starting", Warnings: []string{}}
	if !m.pooled.Load() {
		return s
	}
	workers := m.pool.Workers()
	readings := m.inv.Readings()
	lanes := make(map[string]upgrade.LaneReading)
	for _, r := range readings {
		lanes[r.Name] = r
	}
	for _, a := range m.inv.Addresses() {
		_, why := m.inv.Steerable(a.Name)
		s.Addresses = append(s.Addresses, control.Address{Name: a.Name, URL: m.urlOf(a), Accept: m.inv.Mode(a.Name).String(), Reason: why})
	}
	staged := m.stage.Load()
	var beside []workerpool.Info
	if staged != nil {
		beside = staged.infos()
	}
	workers = append(workers, beside...)
	established := m.established(workers)
	slots := m.pool.Slots()
	byGeneration := make(map[int][]control.Worker)
	for _, w := range workers {
		cw := m.workerStatus(w, lanes, established[w.PID])
		if w.Generation == m.generation && w.Slot >= 0 && w.Slot < len(slots) {
			cw.Restarts = slots[w.Slot].Restarts
		}
		s.MemoryBytes += cmp.Or(cw.MemoryPSS, cw.MemoryRSS)
		byGeneration[w.Generation] = append(byGeneration[w.Generation], cw)
	}
	known := append([]facts{*m.facts.Load()}, m.older...)
	if len(beside) > 0 {
		known = append([]facts{staged.factsNow()}, known...)
		s.Staged = staged.status()
	}
	for _, f := range known {
		ws := byGeneration[f.Generation]
		if f.Generation != m.generation && len(ws) == 0 {
			continue
		}
		slices.SortFunc(ws, func(a, b control.Worker) int { return cmp.Or(cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.PID, b.PID)) })
		g := m.generationStatus(f, ws)
		if s.Staged != nil && f.Generation == s.Staged.Generation {
			g.State, g.MasterPID, g.Revision, g.WhyAlive = s.Staged.State, f.MasterPID, f.Revision, ""
		}
		s.Generations = append(s.Generations, g)
	}
	s.Preview = m.previewStatus(s.Staged)
	m.judge(&s, slots)
	return s
}

func (m *master) controlState() string {
	switch m.state.get() {
	case Starting:
		return control.StateStarting
	case Upgrading, Frozen:
		return control.StateUpgrading
	case Stopping, Over:
		return control.StateStopping
	case Holding:
		return control.StateStaged
	case Serving:
	}
	if m.op != nil && m.op.kind == control.KindReload {
		return control.StateReloading
	}
	return control.StateServing
}

// established counts each worker's open connections, its descendants' included.
func (m *master) established(workers []workerpool.Info) map[int]int {
	owner := make(map[int]int)
	var pids []int
	for _, w := range workers {
		owner[w.PID] = w.PID
		pids = append(pids, w.PID)
		if kids, err := procfs.Descendants(w.PID); err == nil {
			for _, k := range kids {
				owner[k.PID] = w.PID
				pids = append(pids, k.PID)
			}
		}
	}
	sum := make(map[int]int)
	for _, a := range m.inv.Addresses() {
		counts, err := m.inv.Count(a.Name, pids)
		if err != nil {
			m.log.Debug("connections cannot be counted", zap.String("listener", a.Name), zap.Error(err))
		}
		for pid, n := range counts {
			sum[owner[pid]] += n
		}
	}
	return sum
}

func (m *master) workerStatus(w workerpool.Info, lanes map[string]upgrade.LaneReading, established int) control.Worker {
	mem := memoryOf(w.PID)
	cw := control.Worker{
		Slot: w.Slot, PID: w.PID, Generation: w.Generation, Revision: w.Revision, Role: w.Role, State: w.State.String(),
		Since: w.Since, Started: w.Started, Reason: w.Reason, AgeSeconds: time.Since(w.Started).Seconds(),
		MemoryPSS: mem.PSS, MemoryRSS: mem.RSS, Established: established, Adapter: w.Adapter, NoAdapter: w.NoAdapter,
		Says: strings.ToValidUTF8(w.Says, "?"),
	}
	if w.Told && (w.Handoff || w.Reports) {
		inFlight, handed := w.InFlight, w.Handed
		cw.InFlight, cw.Handed = &inFlight, &handed
		if !w.Oldest.IsZero() {
			oldest := time.Since(w.Oldest).Seconds()
			cw.Oldest = &oldest
		}
	}
	for _, name := range w.Lanes {
		if r, ok := lanes[name]; ok {
			cw.Queued += r.Queue
			weight := r.Weight
			if r.Out {
				weight = 0
			}
			cw.Lanes = append(cw.Lanes, control.Lane{Address: r.Address, Index: r.Index, Weight: weight})
		}
	}
	return cw
}

// memoryOf is what a worker and its descendants occupy.
func memoryOf(pid int) (sum procfs.Memory) {
	pids := []int{pid}
	if kids, err := procfs.Descendants(pid); err == nil {
		for _, k := range kids {
			pids = append(pids, k.PID)
		}
	}
	for _, p := range pids {
		if mem, err := procfs.ReadMemory(p); err == nil {
			sum.PSS += mem.PSS
			sum.RSS += mem.RSS
		}
	}
	return sum
}

func (m *master) generationStatus(f facts, ws []control.Worker) control.Generation {
	g := control.Generation{Generation: f.Generation, Revision: f.Revision, State: control.GenerationServing, MasterPID: f.MasterPID,
		AgeSeconds: time.Since(f.Began).Seconds(), ReleaseDir: f.ReleaseDir, Command: f.Command, Binary: f.Binary, Version: f.Version, Workers: ws}
	if f.Generation == m.generation {
		g.Revision, g.State = m.revision, m.own.get().String()
		return g
	}
	g.State, g.MasterPID = control.GenerationDraining, 0
	open := 0
	for _, w := range ws {
		open += w.Established
	}
	g.WhyAlive = fmt.Sprintf("%d of its workers drain, with %d connections open", len(ws), open)
	if oldest := oldestOf(ws); oldest != nil {
		g.WhyAlive += fmt.Sprintf("; the oldest request is %v old", time.Duration(*oldest*float64(time.Second)).Round(time.Second))
	}
	return g
}

// oldestOf is the age in seconds of the oldest request that workers tell of, or nil.
func oldestOf(ws []control.Worker) (oldest *float64) {
	for _, w := range ws {
		if w.Oldest != nil && (oldest == nil || *w.Oldest > *oldest) {
			oldest = w.Oldest
		}
	}
	return oldest
}

// verdict says what is wrong, and all in one line.
func (m *master) verdict(state string, slots []workerpool.SlotInfo, staged *control.Staged) (_, degraded, detail string) {
	ready := 0
	for i, slot := range slots {
		if slot.Ready {
			ready++
		}
		// The first restart comes at once; what needs more of them has a fault.
		if slot.Failures > 1 && !slot.Ready {
			degraded = fmt.Sprintf("worker %d has failed %d times in a row, the last time: %s", i, slot.Failures, slot.LastDeath)
		}
	}
	if degraded == "" {
		degraded = m.limits.badRelease()
	}
	if degraded == "" {
		degraded = m.afterFailed
	}
	if degraded == "" && state == control.StateServing && ready == 0 {
		degraded = "no worker is ready" // as /readyz says
	}
	if degraded != "" && state == control.StateServing {
		state = control.StateDegraded
	}
	detail = fmt.Sprintf("generation %d %s with %d of %d workers", m.generation, state, ready, len(slots))
	if staged != nil {
		detail = fmt.Sprintf("generation %d serves with %d of %d workers, generation %d is %s with %d %% of new connections", m.generation, ready, len(slots),
			staged.Generation, map[string]string{control.GenerationStaged: "staged", control.GenerationWindow: "in its window"}[staged.State], staged.Percent)
	}
	if degraded != "" {
		detail += ": " + degraded
	}
	if m.herald.failure != "" {
		detail += "; " + m.herald.failure
	}
	return state, degraded, oneLine(detail, maxDetail)
}

// maxDetail bounds the line in bytes: systemd takes datagrams of 4 KiB.
const maxDetail = 1000

// oneLine makes one line of valid UTF-8 of a text, of at most limit bytes.
func oneLine(text string, limit int) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, "\ufffd"))
	if len(text) > limit {
		const more = "..."
		text = strings.ToValidUTF8(text[:limit-len(more)], "") + more
	}
	return text
}

// detail is the line alone.
func (m *master) detail(state string) string {
	if !m.pooled.Load() {
		return state
	}
	var beside *control.Staged
	if s := m.stage.Load(); s != nil && len(s.pids()) > 0 {
		beside = s.status()
	}
	_, _, detail := m.verdict(state, m.pool.Slots(), beside)
	return detail
}

// judge says what is wrong, and all in one line.
func (m *master) judge(s *control.Status, slots []workerpool.SlotInfo) {
	s.State, s.DegradedReason, s.Detail = m.verdict(s.State, slots, s.Staged)
	s.MemoryLimit = cgroup.Reader{}.MemoryLimit()
	if warning := tooBig(s.MemoryBytes, s.MemoryLimit); warning != "" {
		s.Warnings = append(s.Warnings, warning)
	}
}

// tooBig warns when two generations would not fit: an upgrade needs room for both.
func tooBig(workers, limit int64) string {
	if limit == 0 || 2*workers <= limit {
		return ""
	}
	return fmt.Sprintf("the workers occupy %d MiB, and two generations of them do not fit into the control group's limit of %d MiB: an upgrade may be killed for it",
		workers>>20, limit>>20)
}
