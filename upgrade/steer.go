package upgrade

import (
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/bpf"
)

// MaxTargets is the largest number of lanes of one address that may be in the program at once with unequal weights or
// scattered indexes. It follows from the kernel's limit of 4,096 instructions, of which the rules may take some. Hosts
// whose net.core.optmem_max is 20480 take a program of at most 1,271 such lanes, and of some 40 fewer beside all rules.
const MaxTargets = 2000

// maxProgram is the kernel's limit on the instructions of one classic program.
const maxProgram = 4096

// programGrace is longer than any reader of a replaced program takes where membarrier(2) cannot say so exactly.
const programGrace = 10 * time.Millisecond

// target is one lane in the program.
type target struct {
	index  int // in the kernel's group
	weight int // at least 1
}

// program computes the classic BPF program that gives a new connection to one of targets at random by weight, unless one
// of rules, of which the first that fits counts, sends it elsewhere. It is a pure function: the one place where lanes
// become instructions.
//
// It chooses at random and never by the packet's hash, which is 0 where a device sets none. It never returns an index
// that is not among its arguments: for an index without a socket the kernel would choose among all, free ones too.
func program(targets []target, rules ...rule) ([]bpf.RawInstruction, error) {
	if len(targets) == 0 {
		return nil, errors.New("a program without lanes would let the kernel choose among all of them")
	}
	if len(targets) > MaxTargets && !contiguous(targets) {
		return nil, fmt.Errorf("%d lanes of one address are more than a program holds (%d): run fewer workers", len(targets), MaxTargets)
	}
	var code []bpf.Instruction
	for _, r := range rules {
		exception, err := r.instructions()
		if err != nil {
			return nil, err
		}
		code = append(code, exception...)
	}
	choice, err := weightedChoice(targets)
	if err != nil {
		return nil, err
	}
	code = append(code, choice...)
	if len(code) > maxProgram {
		return nil, fmt.Errorf("the program of %d lanes has %d instructions and the kernel takes %d: run fewer workers", len(targets), len(code), maxProgram)
	}
	raw, err := bpf.Assemble(code)
	if err != nil {
		return nil, fmt.Errorf("assemble the program of %d lanes: %w", len(targets), err)
	}
	return raw, nil
}

// weightedChoice is the program without rules.
func weightedChoice(targets []target) ([]bpf.Instruction, error) {
	random := bpf.LoadExtension{Num: bpf.ExtRand}
	if len(targets) == 1 {
		return []bpf.Instruction{bpf.RetConstant{Val: uint32(targets[0].index)}}, nil
	}
	if contiguous(targets) {
		return []bpf.Instruction{
			random,
			bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: uint32(len(targets))},
			bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: uint32(targets[0].index)},
			bpf.RetA{},
		}, nil
	}
	var sum uint64
	for _, t := range targets {
		if t.weight < 1 {
			return nil, fmt.Errorf("lane index %d has weight %d: it must be at least 1", t.index, t.weight)
		}
		sum += uint64(t.weight)
	}
	// The modulus of a 32-bit random number is even to one part in 2^32/sum, so the sum is kept far below that.
	if sum > 1<<24 {
		return nil, fmt.Errorf("the weights add up to %d and may to %d: make them smaller", sum, 1<<24)
	}
	code := []bpf.Instruction{random, bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: uint32(sum)}}
	var below uint32
	for _, t := range targets[:len(targets)-1] {
		below += uint32(t.weight)
		// Each return stands right behind its jump, as a jump reaches only 255 instructions.
		code = append(code,
			bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: below, SkipTrue: 1},
			bpf.RetConstant{Val: uint32(t.index)})
	}
	return append(code, bpf.RetConstant{Val: uint32(targets[len(targets)-1].index)}), nil
}

// contiguous says whether the short program will do: equal weights, and indexes one after another.
func contiguous(targets []target) bool {
	for i, t := range targets {
		if t.weight != targets[0].weight || t.index != targets[0].index+i {
			return false
		}
	}
	return targets[0].weight >= 1
}

// Switch changes which lanes get new connections, by one replacement of the program per address: the lanes of activate
// become active with their weights (or change them), those of withdraw draining. Connections that are queued or whose
// handshake has begun stay with their lane; see WaitProgram and Settle.
//
// An address is never left without an active lane: then one of those to withdraw stays active, all else is done, and
// the error matches ErrLastLane and names it. After any other error nothing has changed at the address that it names.
// Plain lanes are marked active once and never withdrawn.
func (inv *Inventory) Switch(activate map[string]int, withdraw []string) error {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	changes := make(map[*group]map[*Lane]int) // the weight that each lane is to have, 0 to withdraw it
	want := func(name string, weight int) error {
		l, err := inv.lane(name)
		if err != nil {
			return err
		}
		next := LaneActive
		if weight == 0 {
			next = LaneDraining
		}
		if l.group.mode == ModePlain && next == LaneDraining {
			return nil
		}
		if err := l.checkMove(next); err != nil {
			return err
		}
		if changes[l.group] == nil {
			changes[l.group] = make(map[*Lane]int)
		}
		changes[l.group][l] = weight
		return nil
	}
	for _, name := range withdraw {
		if err := want(name, 0); err != nil {
			return err
		}
	}
	for name, weight := range activate {
		if weight < 1 {
			return fmt.Errorf("lane %s: weight %d: it must be at least 1", name, weight)
		}
		if err := want(name, weight); err != nil {
			return err
		}
	}
	var errs []error
	for _, g := range inv.groups {
		if change := changes[g]; change != nil {
			errs = append(errs, inv.switchGroup(g, change))
		}
	}
	return errors.Join(errs...)
}

// switchGroup carries out checked changes of one address.
func (inv *Inventory) switchGroup(g *group, change map[*Lane]int) error {
	var kept error
	weights := make(map[*Lane]int, len(g.lanes))
	for _, l := range g.lanes {
		if l.state == LaneActive {
			weights[l] = l.weight
		}
	}
	for l, weight := range change {
		if weights[l] = weight; weight == 0 {
			delete(weights, l)
		}
	}
	if len(weights) == 0 {
		for _, l := range g.lanes {
			// Without any active lane before there is none to keep: what is asked for is then only a repetition.
			if _, asked := change[l]; asked && l.state == LaneActive {
				weights[l] = l.weight
				delete(change, l)
				kept = fmt.Errorf("withdraw %s: %w", l.name, ErrLastLane)
				break
			}
		}
	}
	if len(weights) > 0 {
		if err := inv.apply(g, weights); err != nil {
			return err
		}
	}
	for _, l := range g.lanes {
		weight, changed := change[l]
		if !changed {
			continue
		}
		next := LaneActive
		if weight == 0 {
			next = LaneDraining
		}
		if err := l.move(next, weight); err != nil {
			return err // unreachable: checked before
		}
	}
	return kept
}

// apply computes and attaches the program of an address in which lanes have these weights. It is the only caller of
// program and attach after an address is claimed. The lock is held.
func (inv *Inventory) apply(g *group, weights map[*Lane]int) error {
	if g.mode == ModePlain {
		return nil
	}
	targets := make([]target, 0, len(weights))
	for _, heedOut := range []bool{true, false} { // if every lane is out, none is
		for i, l := range g.lanes {
			if weight := weights[l]; weight > 0 && (!l.out || !heedOut) {
				targets = append(targets, target{index: i, weight: weight})
			}
		}
		if len(targets) > 0 {
			break
		}
	}
	code, err := program(targets, g.rules()...)
	if err != nil {
		return fmt.Errorf("steer %s: %w", g.address.Name, err)
	}
	if err := inv.attach(g.lanes[0].file, code); err != nil {
		return fmt.Errorf("steer %s: %w", g.address.Name, err)
	}
	inv.log.Debug("program attached", zap.String("listener", g.address.Name), zap.Int("lanes", len(targets)))
	return nil
}

// reapply attaches the program of an address as its lanes stand now. The lock is held.
func (inv *Inventory) reapply(g *group) error {
	weights := make(map[*Lane]int, len(g.lanes))
	for _, l := range g.lanes {
		if l.state == LaneActive {
			weights[l] = l.weight
		}
	}
	if len(weights) == 0 {
		weights[g.lanes[0]] = 1 // as when the address was claimed
	}
	return inv.apply(g, weights)
}

// WaitProgram returns when no connection can be given out by a program that was replaced before the call: the readers
// of the old one are then done. It takes some milliseconds.
func (inv *Inventory) WaitProgram() { waitProgram() }
