//go:build linux

package systemd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

// gapless is the binary, built as a release is: race detectors want system calls that a unit forbids.
var gapless string

// counted is the reduced count, or the full one in a soak.
func counted(reduced, full int) int {
	if os.Getenv("GAPLESS_SOAK") == "1" {
		return full
	}
	return reduced
}

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "init":
		fmt.Fprintln(os.Stderr, become())
		os.Exit(1)
	case "arguments":
		os.Exit(printArguments())
	}
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	dir, err := os.MkdirTemp("", "gapless-systemd-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	gapless = filepath.Join(dir, "gapless")
	build := exec.Command("go", "build", "-o", gapless, "gapless/cmd/gapless")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
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
