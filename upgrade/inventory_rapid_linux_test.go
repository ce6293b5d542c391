package upgrade

import (
	"fmt"
	"maps"
	"os"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"pgregory.net/rapid"
)

// TestInventory_ProgramAlwaysMatchesTheLanes does random things to an inventory of real sockets, and after each of them
// runs the program that the kernel has for every random number: each active lane must get exactly its weight, and
// nobody else anything.
func TestInventory_ProgramAlwaysMatchesTheLanes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		files := &fakeFiles{files: make(map[string]*os.File)}
		inv := NewInventory(files, InventoryOptions{})
		var attached []bpf.RawInstruction
		follow := func(file *os.File, code []bpf.RawInstruction) error {
			if err := attach(file, code); err != nil {
				return err
			}
			attached = code
			return nil
		}
		inv.attach = follow
		defer func() {
			_ = inv.Close()
			for _, f := range files.files {
				_ = f.Close()
			}
		}()
		mode := rapid.SampledFrom([]Mode{ModeSteered, ModeShared}).Draw(t, "mode")
		if err := inv.Claim(Address{"web", NetworkTCP, "127.0.0.1:0"}, mode); err != nil {
			t.Fatalf("%v", err)
		}
		rule := newStallRule(time.Millisecond)
		now := time.Unix(0, 0)
		anyLane := func(t *rapid.T) *Lane { return rapid.SampledFrom(inv.Lanes("web")).Draw(t, "lane") }
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				n := rapid.IntRange(1, 4).Draw(t, "n")
				lanes, err := inv.Take("web", n)
				if want := map[Mode]int{ModeSteered: n, ModeShared: 1}[mode]; err != nil || len(lanes) != want {
					t.Fatalf("%d lanes, %v; want %d", len(lanes), err, want)
				}
			},
			"release": func(t *rapid.T) { _ = inv.Release(anyLane(t).Name()) },
			"reuse":   func(t *rapid.T) { _ = inv.Reuse(anyLane(t).Name()) },
			"switch": func(t *rapid.T) {
				activate, withdraw := make(map[string]int), []string(nil)
				for _, l := range inv.Lanes("web") {
					switch rapid.IntRange(0, 3).Draw(t, l.Name()) {
					case 0:
						activate[l.Name()] = rapid.IntRange(1, 5).Draw(t, "weight")
					case 1:
						withdraw = append(withdraw, l.Name())
					}
				}
				_ = inv.Switch(activate, withdraw)
			},
			"stall": func(t *rapid.T) {
				inv.mu.Lock()
				defer inv.mu.Unlock()
				g := inv.groups[0]
				hung := rapid.IntRange(0, len(g.lanes)).Draw(t, "hung")
				for range 6 {
					now = now.Add(time.Millisecond)
					var samples []sample
					for i, l := range g.lanes {
						if l.state == LaneActive {
							samples = append(samples, sample{l, map[bool]int{true: 1, false: 0}[i < hung]})
						}
					}
					for _, l := range rule.decide(now, samples) {
						l.out = !l.out
					}
				}
				if err := inv.reapply(g); err != nil {
					t.Fatalf("%v", err)
				}
			},
			"shutdown": func(t *rapid.T) {
				l := anyLane(t)
				inv.mu.Lock()
				defer inv.mu.Unlock()
				if err := shutdownLane(l); err != nil {
					t.Fatalf("%v", err)
				}
				inv.repair(inv.groups[0], []*Lane{l})
			},
			"upgrade": func(t *rapid.T) {
				next, err := Restore(files, inv.State(), nil, InventoryOptions{})
				if err != nil {
					t.Fatalf("%v", err)
				}
				if err := inv.Close(); err != nil {
					t.Fatalf("%v", err)
				}
				inv, rule = next, newStallRule(time.Millisecond)
				inv.attach = follow
			},
			"": func(t *rapid.T) {
				want, all, sum := make(map[int]int), make(map[int]int), 0
				weight := 0
				for i, l := range inv.Lanes("web") {
					if l.State() != LaneActive {
						continue
					}
					all[i] = l.Weight()
					if !l.out {
						want[i] = l.Weight()
					}
				}
				if len(want) == 0 {
					want = all
				}
				if len(all) == 0 {
					return // nothing was active yet, or the first lane has it all
				}
				for _, weight = range want {
					sum += weight
				}
				got := share(t, attached, sum, packet4("127.0.0.1"))
				if len(want) == 1 {
					for i := range want {
						want[i] = sum
					}
				}
				if contiguousEqual(want) {
					got, want = support(got), support(want)
				}
				if !maps.Equal(got, want) {
					t.Fatalf("program gives %v, lanes say %v\n%s", got, want, fmt.Sprint(inv.State()))
				}
			},
		})
	})
}

// contiguousEqual says that the short program is used, whose modulus is not the sum of weights.
func contiguousEqual(weights map[int]int) bool {
	var first int
	for _, first = range weights {
		break
	}
	for _, w := range weights {
		if w != first {
			return false
		}
	}
	return true
}

// support keeps only who gets something.
func support(shares map[int]int) map[int]int {
	s := make(map[int]int)
	for i := range shares {
		s[i] = 1
	}
	return s
}
