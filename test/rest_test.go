//go:build linux

package test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestRest_ManagersCostNothing: where no connections come, parent and master sleep. They once looked at the lanes fifty
// times a second, which was 1.2 % of a core.
func TestRest_ManagersCostNothing(t *testing.T) {
	s := start(t, options{flags: []string{"-w", "4"}})
	pids := []int{s.pid()}
	for _, m := range s.masters() {
		pids = append(pids, m.PID)
	}
	const span, most = 2 * time.Second, 40
	eventually(t, patience, "parent and master sleep", func() bool {
		before := switches(t, pids)
		pause(span)
		n := switches(t, pids) - before
		t.Logf("%d wake-ups within %v", n, span)
		return n <= most
	})
}

// switches is how often the threads of these processes have gone to sleep.
func switches(t *testing.T, pids []int) (n int) {
	t.Helper()
	for _, pid := range pids {
		files, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/status")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				continue // the thread has ended
			}
			for line := range strings.Lines(string(text)) {
				if v, ok := strings.CutPrefix(line, "voluntary_ctxt_switches:"); ok {
					k, err := strconv.Atoi(strings.TrimSpace(v))
					if err != nil {
						t.Fatal(err)
					}
					n += k
				}
			}
		}
	}
	return n
}
