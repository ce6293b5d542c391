//go:build linux

package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// built is what TestMain has made for all benchmarks.
var built struct {
	dir     string
	gapless string // the binary, built as `make build` does
	self    string // this binary, which plays a server where roleVariable asks for one
}

// report collects the lines that are printed at the end, in one piece.
var report []string

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		if err := play(role); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	var err error
	if built.dir, err = os.MkdirTemp("", "gapless-bench-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(built.dir)
	if built.self, err = os.Executable(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	built.gapless = filepath.Join(built.dir, "gapless")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", built.gapless, "gapless/cmd/gapless")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build gapless:", err)
		return 1
	}
	before := loadAverage()
	status := m.Run()
	if len(report) > 0 {
		fmt.Printf("\n%s, %d cores, load before: %s\n", runtime.Version(), runtime.NumCPU(), before)
		fmt.Println(strings.Join(report, "\n"))
	}
	return status
}

// loadAverage is the machine's load: figures from a busy machine are worth little.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Fields(string(text))[0]
}

// say adds a line to the report: a figure, and the target beside it if there is one.
func say(what, figure, target string, met bool) {
	line := fmt.Sprintf("%-75s %16s", what, figure)
	if target != "" {
		verdict := "met"
		if !met {
			verdict = "MISSED"
		}
		line += fmt.Sprintf("   target %-12s %s", target, verdict)
	}
	report = append(report, line)
}
