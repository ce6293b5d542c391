// Package cgroup reads the limits that the control group of this process sets, on version 1 and version 2 hierarchies.
// Limits of parent groups hold as well, so the least on the way to the root counts.
package cgroup

import (
	"bufio"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// Reader reads below a root, so that tests can give it a machine of their own. The zero value reads this machine.
type Reader struct {
	Root string // of the file system; "": /
}

// group is where this process stands in one hierarchy.
type group struct {
	mount string // of the hierarchy
	path  string // of the group below it
	v2    bool
}

// find returns the group of a controller ("memory", "cpu"); false: there is none.
func (r Reader) find(controller string) (group, bool) {
	data, err := os.ReadFile(filepath.Join(r.Root, "/proc/self/cgroup"))
	if err != nil {
		return group{}, false
	}
	var unified string
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		if parts[0] == "0" && parts[1] == "" {
			unified = parts[2]
		}
		for _, c := range strings.Split(parts[1], ",") {
			if c == controller {
				if m := r.mountOf("cgroup", controller); m != "" {
					return group{mount: m, path: parts[2]}, true
				}
			}
		}
	}
	if m := r.mountOf("cgroup2", ""); m != "" && unified != "" {
		return group{mount: m, path: unified, v2: true}, true
	}
	return group{}, false
}

// mountOf finds where a hierarchy is mounted.
func (r Reader) mountOf(kind, controller string) string {
	f, err := os.Open(filepath.Join(r.Root, "/proc/self/mountinfo"))
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		before, after, ok := strings.Cut(s.Text(), " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(rest) < 3 || rest[0] != kind {
			continue
		}
		if controller == "" {
			return fields[4]
		}
		for _, option := range strings.Split(rest[2], ",") {
			if option == controller {
				return fields[4]
			}
		}
	}
	return ""
}

// least calls read for the group and each of its ancestors and returns the least value; false: no limit.
func (r Reader) least(g group, read func(dir string) (float64, bool)) (float64, bool) {
	least, found := math.Inf(1), false
	for path := filepath.Clean("/" + g.path); ; path = filepath.Dir(path) {
		if v, ok := read(filepath.Join(r.Root, g.mount, path)); ok && v < least {
			least, found = v, true
		}
		if path == "/" {
			return least, found
		}
	}
}

func number(dir, file string) (float64, bool) {
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0, false
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(string(data)), 64) // "max" is none
	return v, err == nil
}

// unlimited is above what version 1 writes where there is no limit (the largest multiple of a page).
const unlimited = 1 << 60

// MemoryLimit returns the most memory in bytes that the group may use; 0: there is no limit, or none that can be read.
func (r Reader) MemoryLimit() int64 {
	g, ok := r.find("memory")
	if !ok {
		return 0
	}
	file := "memory.limit_in_bytes"
	if g.v2 {
		file = "memory.max"
	}
	v, ok := r.least(g, func(dir string) (float64, bool) { return number(dir, file) })
	if !ok || v >= unlimited {
		return 0
	}
	return int64(v)
}

// CPUs returns how many processors this process can use: those that it may run on, and no more than the group's quota,
// rounded up.
func (r Reader) CPUs() int {
	n := runtime.NumCPU()
	g, ok := r.find("cpu")
	if !ok {
		return n
	}
	quota, ok := r.least(g, func(dir string) (float64, bool) {
		if !g.v2 {
			q, ok := number(dir, "cpu.cfs_quota_us")
			p, ok2 := number(dir, "cpu.cfs_period_us")
			return q / p, ok && ok2 && q > 0 && p > 0
		}
		data, err := os.ReadFile(filepath.Join(dir, "cpu.max"))
		fields := strings.Fields(string(data))
		if err != nil || len(fields) != 2 {
			return 0, false
		}
		q, err := strconv.ParseFloat(fields[0], 64)
		p, err2 := strconv.ParseFloat(fields[1], 64)
		return q / p, err == nil && err2 == nil && p > 0
	})
	if !ok {
		return n
	}
	return max(1, min(n, int(math.Ceil(quota))))
}
