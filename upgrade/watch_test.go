package upgrade

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestStallRule(t *testing.T) {
	const window, interval = 100 * time.Millisecond, 20 * time.Millisecond
	// queues(i) are the queue lengths of the lanes at reading i; events are "READING:LANE out|back".
	for _, tc := range []struct {
		name   string
		n      int
		queues func(i int) []int
		events string
	}{
		{"all idle", 100, func(int) []int { return []int{0, 0, 0, 0} }, ""},
		{"one hangs", 100, func(i int) []int { return []int{0, min(i, 30), 0, 0} }, "6:1 out"},
		{"a constant queue hangs too", 100, func(int) []int { return []int{0, 1, 0, 0} }, "5:1 out"},
		{"a long queue that moves does not", 100, func(i int) []int { return []int{0, 50 + i%3, 0, 0} }, ""},
		{"back when empty", 30, func(i int) []int {
			if i < 20 {
				return []int{5, 0}
			}
			return []int{0, 0}
		}, "5:0 out, 20:0 back"},
		{"empty too soon", 30, func(i int) []int {
			if i < 6 {
				return []int{5, 0}
			}
			return []int{0, 0}
		}, "5:0 out, 10:0 back"},
		{"a single lane is never out", 100, func(int) []int { return []int{9} }, ""},
		{"never more than half", 100, func(int) []int { return []int{1, 1, 1, 1, 1} }, "5:0 out, 5:1 out"},
		{"the longest first", 100, func(i int) []int { return []int{min(1, i/3), 1, 0} }, "5:1 out"},
		{"two in a row of two", 100, func(int) []int { return []int{1, 1} }, "5:0 out"},
		{"longer each time", 100, func(i int) []int { // hangs, is empty at once when it is out, hangs again when back
			switch {
			case i < 6, i >= 11 && i < 17:
				return []int{1, 0}
			default:
				return []int{0, 0}
			}
		}, "5:0 out, 10:0 back, 16:0 out, 26:0 back"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rule := newStallRule(window)
			now := time.Unix(0, 0)
			var lanes []*Lane
			var events []string
			for i := range tc.n {
				queues := tc.queues(i)
				var samples []sample
				for j, q := range queues {
					if j == len(lanes) {
						lanes = append(lanes, &Lane{name: fmt.Sprint(j)})
					}
					samples = append(samples, sample{lanes[j], q})
				}
				for _, l := range rule.decide(now, samples) {
					l.out = !l.out
					events = append(events, fmt.Sprintf("%d:%s %s", i, l.name, map[bool]string{true: "out", false: "back"}[l.out]))
				}
				if out := countOut(lanes); out > len(lanes)/2 {
					t.Fatalf("reading %d: %d of %d out", i, out, len(lanes))
				}
				now = now.Add(interval)
			}
			if got := strings.Join(events, ", "); got != tc.events {
				t.Fatalf("got  %s\nwant %s", got, tc.events)
			}
		})
	}
}

func countOut(lanes []*Lane) (n int) {
	for _, l := range lanes {
		if l.out {
			n++
		}
	}
	return n
}

func TestStallRule_DoesNotCountTimeThatItDidNotSee(t *testing.T) {
	rule, now := newStallRule(100*time.Millisecond), time.Unix(0, 0)
	lanes := []*Lane{{name: "0"}, {name: "1"}}
	for range 3 {
		now = now.Add(time.Hour)
		for range 4 {
			now = now.Add(20 * time.Millisecond)
			if changed := rule.decide(now, []sample{{lanes[0], 1}, {lanes[1], 0}}); len(changed) > 0 {
				t.Fatal("out after a sleep")
			}
		}
	}
}

func TestStallRule_LanesThatLeaveGiveOthersBack(t *testing.T) {
	rule, now := newStallRule(100*time.Millisecond), time.Unix(0, 0)
	lanes := []*Lane{{name: "0"}, {name: "1"}, {name: "2"}, {name: "3"}}
	samples := []sample{{lanes[0], 1}, {lanes[1], 1}, {lanes[2], 0}, {lanes[3], 0}}
	for range 10 {
		for _, l := range rule.decide(now, samples) {
			l.out = !l.out
		}
		now = now.Add(20 * time.Millisecond)
	}
	if countOut(lanes) != 2 {
		t.Fatalf("%d out", countOut(lanes))
	}
	changed := rule.decide(now, samples[:2])
	if len(changed) != 1 || changed[0] != lanes[0] {
		t.Fatalf("%d changed", len(changed))
	}
}
