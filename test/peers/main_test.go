//go:build linux

package peers

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// built are the programs that are measured and measure.
var built struct {
	gapless string // made by build
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
	os.Exit(m.Run())
}

// build makes the gapless of this checkout.
func build(b *testing.B) {
	b.Helper()
	var err error
	if built.self, err = os.Executable(); err != nil {
		b.Fatal(err)
	}
	built.gapless = filepath.Join(b.TempDir(), "gapless")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", built.gapless, "gapless/cmd/gapless")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("build gapless: %v\n%s", err, out)
	}
}
