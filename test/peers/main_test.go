//go:build linux

package peers

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// built is what TestMain has made for all peers.
var built struct {
	gapless string
	self    string // this binary, which plays a server where roleVariable asks for one
}

const roleVariable = "PEERS_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) == "tableflip" {
		if err := serveByTableflip(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	dir, err := os.MkdirTemp("", "gapless-peers-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if built.self, err = os.Executable(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	built.gapless = filepath.Join(dir, "gapless")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", built.gapless, "gapless/cmd/gapless")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build gapless:", err)
		return 1
	}
	return m.Run()
}
