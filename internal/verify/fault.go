package verify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"gapless/internal/control"
)

// The faults.
const (
	KillWorker    = "kill-worker"    // a worker is killed: only what it had in hand may be lost
	BrokenRelease = "broken-release" // a release that does not start: the upgrade must be aborted
	KillMaster    = "kill-master"    // the master is killed: another must take its place
)

// Faults lists them.
func Faults() []string { return []string{KillWorker, BrokenRelease, KillMaster} }

// ErrNotSupported says that this system cannot tell which connections a process has.
var ErrNotSupported = errors.New("needs Linux")

// Fault returns a fault by its name.
func (s *Server) Fault(name string) (Act, error) {
	do, ok := map[string]func(context.Context) (Outcome, error){
		KillWorker: s.killWorker, BrokenRelease: s.brokenRelease, KillMaster: s.killMaster,
	}[name]
	if !ok {
		return Act{}, fmt.Errorf("%q is no fault: choose among %s", name, strings.Join(Faults(), ", "))
	}
	return Act{Name: name, Fault: true, Do: do}, nil
}

// NeedsGate tells whether a fault needs ServerConfig.Gate.
func NeedsGate(faults []string) bool { return slices.Contains(faults, BrokenRelease) }

// brokenRelease upgrades to a release whose workers exit at once.
func (s *Server) brokenRelease(ctx context.Context) (Outcome, error) {
	if err := os.WriteFile(s.gate, nil, 0o600); err != nil {
		return Outcome{}, err
	}
	defer os.Remove(s.gate) //nolint:errcheck // if it cannot be removed, what follows fails and says so
	got, err := s.upgrade(ctx)
	if err != nil {
		return Outcome{}, err
	}
	if got.OK {
		return Outcome{}, fmt.Errorf("generation %d took over, though its release is broken", got.Generation)
	}
	return Outcome{Note: "aborted, as it should be: " + got.Reason}, nil
}

// serving returns the generation in charge.
func serving(st control.Status) (control.Generation, bool) {
	for _, g := range st.Generations {
		if g.State == control.GenerationServing {
			return g, true
		}
	}
	return control.Generation{}, false
}

// look asks for the status until ok says that it is as it should be.
func (s *Server) look(ctx context.Context, ok func(control.Generation) bool) error {
	for {
		if st, err := s.client.Status(ctx); err == nil {
			// A server that has just lost a worker may well call itself degraded.
			if g, found := serving(st); found && st.State != control.StateNoMaster && ok(g) {
				return nil
			}
		}
		if err := s.pause(ctx); err != nil {
			return err
		}
	}
}

// killWorker kills a worker of the generation in charge and waits until its slot has another one that is ready.
func (s *Server) killWorker(ctx context.Context) (Outcome, error) {
	st, err := s.client.Status(ctx)
	if err != nil {
		return Outcome{}, err
	}
	g, _ := serving(st)
	i := slices.IndexFunc(g.Workers, func(w control.Worker) bool { return w.Role == "" && w.State == "ready" })
	if i < 0 {
		return Outcome{}, errors.New("no worker is ready")
	}
	victim := g.Workers[i]
	out, err := s.kill(victim.PID)
	if err != nil {
		return Outcome{}, fmt.Errorf("kill worker %d (pid %d): %w", victim.Slot, victim.PID, err)
	}
	out.Note = fmt.Sprintf("worker %d (pid %d) was killed with %s open", victim.Slot, victim.PID, count(len(out.Own), "connection", "connections"))
	err = s.look(ctx, func(g control.Generation) bool {
		return slices.ContainsFunc(g.Workers, func(w control.Worker) bool {
			return w.Slot == victim.Slot && w.PID != victim.PID && w.State == "ready"
		})
	})
	if err != nil {
		err = fmt.Errorf("worker %d was killed and has not been replaced: %w", victim.Slot, err)
	}
	return out, err
}

// killMaster kills the master in charge and waits for the next.
func (s *Server) killMaster(ctx context.Context) (Outcome, error) {
	st, err := s.client.Status(ctx)
	if err != nil {
		return Outcome{}, err
	}
	g, ok := serving(st)
	if !ok || g.MasterPID == 0 {
		return Outcome{}, errors.New("no master is in charge")
	}
	if err := killProcess(g.MasterPID); err != nil {
		return Outcome{}, fmt.Errorf("kill the master (pid %d): %w", g.MasterPID, err)
	}
	out := Outcome{Note: fmt.Sprintf("the master (pid %d) was killed", g.MasterPID)}
	err = s.look(ctx, func(now control.Generation) bool { return now.MasterPID != 0 && now.MasterPID != g.MasterPID })
	if err != nil {
		err = fmt.Errorf("the master was killed and no other has taken its place: %w", err)
	}
	return out, err
}
