package upgrade

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"pgregory.net/rapid"
)

// simulate runs a program as the kernel would, with random as what `ld rand` gives and packet from its IP header on.
// Anything that the kernel would refuse or that ends without a return is an error.
func simulate(code []bpf.RawInstruction, random uint32, packet []byte) (uint32, error) {
	const random56, network = 0xfffff000 + 56, 0xfff00000
	var a uint32
	for pc := 0; pc < len(code); pc++ {
		i := code[pc]
		jump := func(ok bool) {
			if ok {
				pc += int(i.Jt)
			} else {
				pc += int(i.Jf)
			}
		}
		load := func(size int) ([]byte, error) {
			at := int(i.K) - network
			if at < 0 || at+size > len(packet) {
				return nil, fmt.Errorf("instruction %d loads %d bytes at %#x", pc, size, i.K)
			}
			return packet[at : at+size], nil
		}
		switch i.Op {
		case 0x20: // ld
			if i.K == random56 {
				a = random
				continue
			}
			b, err := load(4)
			if err != nil {
				return 0, err
			}
			a = binary.BigEndian.Uint32(b)
		case 0x28: // ldh
			b, err := load(2)
			if err != nil {
				return 0, err
			}
			a = uint32(binary.BigEndian.Uint16(b))
		case 0x30: // ldb
			b, err := load(1)
			if err != nil {
				return 0, err
			}
			a = uint32(b[0])
		case 0x94: // mod
			if i.K == 0 {
				return 0, errors.New("modulo by zero")
			}
			a %= i.K
		case 0x04: // add
			a += i.K
		case 0x74: // rsh
			a >>= i.K
		case 0x54: // and
			a &= i.K
		case 0x05: // ja
			pc += int(i.K)
		case 0x15: // jeq
			jump(a == i.K)
		case 0x35: // jge
			jump(a >= i.K)
		case 0x16: // ret a
			return a, nil
		case 0x06: // ret k
			return i.K, nil
		default:
			return 0, fmt.Errorf("instruction %d: unknown operation %#x", pc, i.Op)
		}
	}
	return 0, errors.New("the program ends without a return")
}

// packet4 and packet6 are IP headers from a source; class is the traffic class.
func packet4(source string) []byte {
	p := make([]byte, 40)
	p[0] = 0x45
	for i, part := range strings.Split(source, ".") {
		_, _ = fmt.Sscan(part, &p[12+i])
	}
	return p
}

func packet6(last byte, class byte) []byte {
	p := make([]byte, 60)
	p[0], p[1] = 0x60|class>>4, class<<4
	p[23] = last
	return p
}

// share runs a program for every random number below sum and counts what it returns.
func share(t interface{ Fatalf(string, ...any) }, code []bpf.RawInstruction, sum int, packet []byte) map[int]int {
	got := make(map[int]int)
	for r := range sum {
		index, err := simulate(code, uint32(r), packet)
		if err != nil {
			t.Fatalf("%v", err)
		}
		got[int(index)]++
	}
	return got
}

func TestProgram_Golden(t *testing.T) {
	for _, tc := range []struct {
		name    string
		targets []target
		rules   []rule
		want    string
	}{
		{"one lane", []target{{3, 9}}, nil, "ret #3"},
		{"equal and contiguous", []target{{4, 2}, {5, 2}, {6, 2}}, nil, "ld #rand; mod #3; add #4; ret a"},
		{"scattered", []target{{0, 1}, {2, 1}}, nil, "ld #rand; mod #2; jge #1,1; ret #0; ret #2"},
		{"weighted", []target{{0, 95}, {1, 4}, {7, 1}}, nil, "ld #rand; mod #100; jge #95,1; ret #0; jge #99,1; ret #1; ret #7"},
		{
			"preview", []target{{1, 1}}, []rule{{previewMark(), []int{5}}},
			"ldb [4293918720]; rsh #4; jneq #4,3; ld [4293918732]; jeq #2135752705,14; ja 12; ld [4293918728]; jneq #0,10; " +
				"ld [4293918732]; jneq #0,8; ld [4293918736]; jneq #0,6; ld [4293918740]; jneq #1,4; ldh [4293918720]; rsh #4; " +
				"and #252; jeq #92,1; ja 1; ret #5; ret #1",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, err := program(tc.targets, tc.rules...)
			if err != nil {
				t.Fatal(err)
			}
			instructions, _ := bpf.Disassemble(code)
			var lines []string
			for _, i := range instructions {
				lines = append(lines, fmt.Sprint(i))
			}
			if got := strings.Join(lines, "; "); got != tc.want {
				t.Fatalf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestProgram_EverySizeToTheLimit(t *testing.T) {
	for n := 1; n <= MaxTargets; n++ {
		even, scattered := make([]target, n), make([]target, n)
		for i := range n {
			even[i] = target{index: 5 + i, weight: 1}
			scattered[i] = target{index: 2 * i, weight: 1 + i%3}
		}
		for _, targets := range [][]target{even, scattered} {
			for _, rules := range [][]rule{nil, allRules(n)} {
				code, err := program(targets, rules...)
				if err != nil {
					t.Fatalf("%d lanes: %v", n, err)
				}
				if len(code) > maxProgram {
					t.Fatalf("%d lanes: %d instructions", n, len(code))
				}
				checkEdges(t, code, targets)
			}
		}
	}
	over := make([]target, MaxTargets+1)
	for i := range over {
		over[i] = target{index: 2 * i, weight: 1}
	}
	if _, err := program(over); err == nil || !strings.Contains(err.Error(), "fewer workers") {
		t.Errorf("over the limit: %v", err)
	}
}

// checkEdges tries the first and the last random number of each lane's share, which settles all between them. Of more
// than 64 lanes it takes 16, the first and the last among them: all of all sizes would take minutes.
func checkEdges(t *testing.T, code []bpf.RawInstruction, targets []target) {
	t.Helper()
	packet, below := packet4("192.0.2.1"), 0
	for i, want := range targets {
		edges := []int{below, below + want.weight - 1}
		if n := len(targets); n > 64 && i < n-1 && i%(n/14) != 0 {
			edges = nil
		}
		for _, r := range edges {
			if index, err := simulate(code, uint32(r), packet); err != nil || int(index) != want.index {
				t.Fatalf("%d lanes, random %d: index %d, %v; want %d", len(targets), r, index, err, want.index)
			}
		}
		below += want.weight
	}
}

func TestProgram_SharesAreExactlyTheWeights(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 300).Draw(t, "lanes")
		order := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)).Perm(2 * n)
		targets, want, sum := make([]target, n), make(map[int]int), 0
		for i := range targets {
			targets[i] = target{index: order[i], weight: rapid.IntRange(1, 30).Draw(t, "weight")}
			want[order[i]] = targets[i].weight
			sum += targets[i].weight
		}
		previews := rapid.IntRange(0, maxPreviewLanes).Draw(t, "previews")
		var rules []rule
		knock := rapid.Bool().Draw(t, "knock")
		if knock {
			rules = append(rules, rule{knockMark(), []int{2 * n}})
		}
		preview := rule{mark: previewMark()}
		for index := 3 * n; len(preview.indexes) < previews; index += rapid.IntRange(1, 2).Draw(t, "step") {
			preview.indexes = append(preview.indexes, index)
		}
		if previews > 0 {
			rules = append(rules, preview)
		}
		code, err := program(targets, rules...)
		if err != nil {
			t.Fatalf("%v", err)
		}
		if n == 1 {
			want = map[int]int{targets[0].index: sum}
		}
		ordinary := [][]byte{packet4("127.0.0.1"), packet4("127.77.0.3"), packet6(1, 0), packet6(2, byte(previewMark().class)), packet6(2, byte(knockMark().class))}
		previewed := [][]byte{packet4(PreviewIPv4), packet6(1, byte(previewMark().class)), packet6(1, byte(previewMark().class)|3)}
		knocked := [][]byte{packet4("127.77.0.2"), packet6(1, byte(knockMark().class)), packet6(1, byte(knockMark().class)|3)}
		if previews == 0 {
			ordinary = append(ordinary, previewed...)
		}
		if !knock {
			ordinary = append(ordinary, knocked...)
		}
		for _, packet := range ordinary {
			if got := share(t, code, sum, packet); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("got %v, want %v", got, want)
			}
		}
		if previews > 0 {
			evenly := make(map[int]int)
			for _, index := range preview.indexes {
				evenly[index] = 5
			}
			for _, packet := range previewed {
				if got := share(t, code, 5*len(preview.indexes), packet); fmt.Sprint(got) != fmt.Sprint(evenly) {
					t.Fatalf("preview: %v, want %v", got, evenly)
				}
			}
		}
		if knock {
			for _, packet := range knocked {
				if got := share(t, code, sum, packet); len(got) != 1 || got[2*n] != sum {
					t.Fatalf("knock: %v", got)
				}
			}
		}
	})
}

// allRules are the rules that take the most room; n is the number of lanes, whose indexes end at 2n.
func allRules(n int) []rule {
	preview := rule{mark: previewMark()}
	for i := range maxPreviewLanes {
		preview.indexes = append(preview.indexes, (2*n+i*i)%(2*n+1)) // scattered
	}
	slices.Sort(preview.indexes)
	return []rule{{knockMark(), []int{0}}, preview}
}

func TestProgram_Refuses(t *testing.T) {
	for _, tc := range []struct {
		name    string
		targets []target
	}{
		{"no lane", nil},
		{"weight 0", []target{{0, 1}, {1, 0}}},
		{"only weight 0", []target{{0, 0}, {1, 0}}},
		{"negative weight", []target{{0, 1}, {5, -1}}},
		{"too large a sum", []target{{0, 1 << 24}, {1, 1}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if code, err := program(tc.targets); err == nil {
				t.Fatalf("program %v", code)
			}
		})
	}
}

func TestPrograms_AreTakenByTheKernel(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0", ":0"} {
		t.Run(addr, func(t *testing.T) {
			inv := claim(t, addr, ModeSteered)
			first := inv.Lanes("web")[0]
			for _, n := range []int{1, 2, 64, 127, 128, 256, 1271, MaxTargets} {
				targets := make([]target, n)
				for i := range targets {
					targets[i] = target{index: 2 * i, weight: 1 + i%2}
				}
				code, err := program(targets, allRules(n)...)
				if err != nil {
					t.Fatal(err)
				}
				if err := attach(first.File(), code); err != nil {
					t.Errorf("%d lanes: %v", n, err)
				}
			}
		})
	}
}

func TestSwitch_SteersByWeight(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0", ":0"} {
		t.Run(addr, func(t *testing.T) {
			inv := claim(t, addr, ModeSteered)
			lanes := take(t, inv, 4)
			for _, l := range lanes {
				echoName(t, l)
			}
			count := func(n int) map[string]int {
				got := make(map[string]int)
				for range n {
					got[who(t, inv.Addresses()[0])]++
				}
				return got
			}
			for _, tc := range []struct {
				name     string
				activate map[string]int
				withdraw []string
				allowed  string
			}{
				{"the first", map[string]int{"web#1": 1}, nil, "web#1"},
				{"a second", map[string]int{"web#3": 3}, nil, "web#1 web#3"},
				{"all others", map[string]int{"web#0": 1, "web#2": 1}, []string{"web#1", "web#3"}, "web#0 web#2"},
				{"back again", map[string]int{"web#3": 1}, []string{"web#0", "web#2"}, "web#3"},
			} {
				if err := inv.Switch(tc.activate, tc.withdraw); err != nil {
					t.Fatalf("%s: %v", tc.name, err)
				}
				got := count(64)
				for name := range got {
					if !strings.Contains(tc.allowed, name) {
						t.Errorf("%s: %v, allowed %s", tc.name, got, tc.allowed)
					}
				}
				// With 64 connections, and a share of at least a quarter, one in 10^8 runs sees none.
				if len(got) != len(strings.Fields(tc.allowed)) {
					t.Errorf("%s: %v, want each of %s", tc.name, got, tc.allowed)
				}
			}
		})
	}
}

func TestSwitch_KeepsTheLastActiveLane(t *testing.T) {
	inv := claim(t, "127.0.0.1:0", ModeSteered)
	take(t, inv, 2)
	if err := inv.Switch(map[string]int{"web#0": 1, "web#1": 2}, nil); err != nil {
		t.Fatal(err)
	}
	err := inv.Switch(nil, []string{"web#0", "web#1"})
	if !errors.Is(err, ErrLastLane) {
		t.Fatalf("error %v", err)
	}
	if inv.Lane("web#0").State() != LaneActive || inv.Lane("web#1").State() != LaneDraining {
		t.Fatalf("states %s and %s", inv.Lane("web#0").State(), inv.Lane("web#1").State())
	}
	if err := inv.Switch(map[string]int{"web#1": 1}, []string{"web#0"}); err != nil {
		t.Fatal(err)
	}
	if err := inv.Reuse("web#0"); err != nil {
		t.Fatal(err)
	}
	if got := inv.Lane("web#0").State(); got != LaneStarting {
		t.Fatalf("state %s", got)
	}
}

func TestSwitch_RefusesAsAWhole(t *testing.T) {
	for _, tc := range []struct {
		name     string
		activate map[string]int
		withdraw []string
	}{
		{"a free lane", map[string]int{"web#0": 1, "web#2": 1}, nil},
		{"an unknown lane", map[string]int{"web#0": 1, "web#9": 1}, nil},
		{"an unknown address", map[string]int{"web#0": 1, "api#0": 1}, nil},
		{"weight 0", map[string]int{"web#0": 0}, nil},
		{"withdraw what starts", nil, []string{"web#0"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inv := claim(t, "127.0.0.1:0", ModeSteered)
			take(t, inv, 3)
			if err := inv.Release("web#2"); err != nil {
				t.Fatal(err)
			}
			if err := inv.Switch(tc.activate, tc.withdraw); err == nil {
				t.Fatal("done")
			}
			if got := inv.Lane("web#0").State(); got != LaneStarting {
				t.Fatalf("state %s", got)
			}
		})
	}
}
