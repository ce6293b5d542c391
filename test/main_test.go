//go:build linux

package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// built is what TestMain has made for all tests.
var built struct {
	gapless string // the binary; tests run a link to it that they may replace
	self    string // this test binary, for roles
}

// soak asks for the full counts.
var soak = os.Getenv("GAPLESS_SOAK") == "1"

// counted is the reduced count, or the full one in a soak.
func counted(reduced, full int) int {
	if soak {
		return full
	}
	return reduced
}

// patience bounds every wait for something that should happen at once or nearly so. It is wide because it only decides
// how long a failure takes.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		os.Exit(play(role))
	}
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	dir, err := os.MkdirTemp("", "gapless-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// What a killed parent leaves behind comes to this process instead of to init: the tests see it.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "become a subreaper:", err)
		return 1
	}
	if built.self, err = os.Executable(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	built.gapless = filepath.Join(dir, "gapless")
	args := []string{"build", "-o", built.gapless}
	if raceEnabled {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, "gapless/cmd/gapless")...)
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build gapless:", err)
		return 1
	}
	status := m.Run()
	if status == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return status
}

// eventually polls until ok; what it waits for is kernel state or another process's, which cannot be waited for.
func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	if !became(limit, ok) {
		t.Fatalf("not within %v: %s", limit, what)
	}
}

func became(limit time.Duration, ok func() bool) bool {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			return ok()
		case <-tick.C:
		}
	}
	return true
}
