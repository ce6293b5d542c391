package upgrade

import (
	"fmt"
	"slices"

	"go.uber.org/zap"
	"golang.org/x/net/bpf"
)

// mark is what a connection of this machine's own is recognized by: the IPv4 address that it is made from, or ::1 and a
// traffic class for listeners that take IPv6 only, where loopback has but one address. Outsiders can use neither: the
// kernel drops packets from outside that claim to come from loopback. Any user of this machine can.
type mark struct {
	ipv4  [4]byte
	class uint32 // its two ECN bits are ignored
}

// previewMark is on connections for the generation that is staged, knockMark on those that ask a worker whether it is
// ready: a knock must not move the previews meanwhile.
func previewMark() mark { return mark{[4]byte{127, 77, 0, 1}, 0x5c} }
func knockMark() mark   { return mark{[4]byte{127, 77, 0, 2}, 0x60} }

// PreviewIPv4 is the address that a worker sees as the peer of a preview connection over IPv4.
const PreviewIPv4 = "127.77.0.1"

// maxPreviewLanes bounds what a preview takes of the room for instructions. A preview is no load test: more lanes than
// that get none of it.
const maxPreviewLanes = 16

// rule is an exception of a program: marked connections go to one of these lanes, each as often as the others.
type rule struct {
	mark    mark
	indexes []int
}

// instructions are the rule's: a marked connection returns from them, any other runs into what follows. Offsets count
// from the IP header, which the kernel offers at bpf's ancillary network offset.
func (r rule) instructions() ([]bpf.Instruction, error) {
	const network = 0xfff00000 // SKF_NET_OFF
	load := func(offset uint32, size int) bpf.Instruction {
		return bpf.LoadAbsolute{Off: network + offset, Size: size}
	}
	unless := func(val uint32, skip uint8) bpf.Instruction {
		return bpf.JumpIf{Cond: bpf.JumpEqual, Val: val, SkipFalse: skip}
	}
	targets := make([]target, len(r.indexes))
	for i, index := range r.indexes {
		targets[i] = target{index: index, weight: 1}
	}
	choice, err := weightedChoice(targets)
	if err != nil {
		return nil, err
	}
	ip := r.mark.ipv4
	match := []bpf.Instruction{
		0: load(0, 1), // version and header length
		1: bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
		2: unless(4, 3),
		3: load(12, 4), // IPv4 source
		4: bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(ip[0])<<24 | uint32(ip[1])<<16 | uint32(ip[2])<<8 | uint32(ip[3]), SkipTrue: 14},
		5: bpf.Jump{Skip: 12},
		6: load(8, 4), // IPv6 source, four words
		7: unless(0, 10),
		8: load(12, 4), 9: unless(0, 8),
		10: load(16, 4), 11: unless(0, 6),
		12: load(20, 4), 13: unless(1, 4),
		14: load(0, 2), // version, traffic class, flow label
		15: bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
		16: bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xfc},
		17: bpf.JumpIf{Cond: bpf.JumpEqual, Val: r.mark.class, SkipTrue: 1},
		18: bpf.Jump{Skip: uint32(len(choice))}, // not marked; the way is longer than a conditional jump reaches
	}
	return append(match, choice...), nil
}

// rules are the exceptions of an address's program as they stand now. The lock is held.
func (g *group) rules() []rule {
	var rules []rule
	if g.knock != nil {
		rules = append(rules, rule{knockMark(), []int{g.index(g.knock)}})
	}
	var indexes []int
	for _, l := range g.preview {
		indexes = append(indexes, g.index(l))
	}
	slices.Sort(indexes)
	if len(indexes) > 0 {
		rules = append(rules, rule{previewMark(), indexes[:min(len(indexes), maxPreviewLanes)]})
	}
	return rules
}

// marked tells whether a rule names a lane. The lock is held.
func (g *group) marked(l *Lane) bool { return l == g.knock || slices.Contains(g.preview, l) }

// SetPreview gives the preview connections of an address to some of its lanes, whatever their states, or to the active
// lanes like all others if there are none. Of many lanes only the 16 with the lowest indexes get them.
//
// A lane stays previewed when it is withdrawn, and leaves the preview when it is released. Take hands none of them out.
func (inv *Inventory) SetPreview(address string, lanes ...string) error {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	g, next, err := inv.named("preview", address, lanes)
	if err != nil {
		return err
	}
	if slices.Equal(g.preview, next) {
		return nil
	}
	before := g.preview
	g.preview = next
	if err := inv.reapply(g); err != nil {
		g.preview = before
		return err
	}
	inv.tell()
	return nil
}

// SetKnock gives the connections of KnockDialer to one lane, whatever its state, or to the active lanes like all others
// if lane is "". It lasts as long as a question to a worker takes, so that State does not tell it.
func (inv *Inventory) SetKnock(address, lane string) error {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	var lanes []string
	if lane != "" {
		lanes = []string{lane}
	}
	g, found, err := inv.named("knock", address, lanes)
	if err != nil {
		return err
	}
	before := g.knock
	if g.knock = nil; len(found) > 0 {
		g.knock = found[0]
	}
	if g.knock == before {
		return nil
	}
	if err := inv.reapply(g); err != nil {
		g.knock = before
		return err
	}
	return nil
}

// named finds lanes of one address that can be steered. The lock is held.
func (inv *Inventory) named(what, address string, lanes []string) (*group, []*Lane, error) {
	g := inv.find(address)
	if g == nil {
		return nil, nil, fmt.Errorf("%s of %q: %w", what, address, ErrUnknown)
	}
	if g.mode == ModePlain {
		return nil, nil, fmt.Errorf("%s of %s: its connections cannot be steered: %s", what, address, g.reason)
	}
	var found []*Lane
	for _, name := range lanes {
		l, err := inv.lane(name)
		if err != nil {
			return nil, nil, err
		}
		if !slices.Contains(g.lanes, l) {
			return nil, nil, fmt.Errorf("%s of %s: lane %s belongs to another address", what, address, name)
		}
		found = append(found, l)
	}
	return g, found, nil
}

// Preview returns the lanes that get the preview connections of an address, nil where the active ones do.
func (inv *Inventory) Preview(address string) []string {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	g := inv.find(address)
	if g == nil {
		return nil
	}
	var names []string
	for _, l := range g.preview {
		names = append(names, l.name)
	}
	return names
}

// released follows a lane's becoming free: nobody would answer a preview there. The lock is held.
func (inv *Inventory) released(l *Lane) {
	i := slices.Index(l.group.preview, l)
	if i < 0 {
		return
	}
	l.group.preview = slices.Delete(slices.Clone(l.group.preview), i, i+1)
	if err := inv.reapply(l.group); err != nil {
		inv.log.Warn("program not replaced", zap.String("listener", l.group.address.Name), zap.Error(err))
	}
}
