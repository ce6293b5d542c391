package unit

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// systemd itself finds nothing to complain about.
func TestFiles_SystemdVerifies(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Fatalf("%v: make test-deps installs it", err)
	}
	for name, s := range cases() {
		if s.NotifyReload {
			continue // systemd 252, which many have, does not know it yet
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s.Binary = "/bin/sh" // it demands that the programs are there
			files, err := Files(s)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			args := []string{"verify", "--man=no"}
			if s.UserManager {
				args = append(args, "--user")
			}
			for _, f := range files {
				path := filepath.Join(dir, f.Name)
				if err := os.WriteFile(path, []byte(f.Text), 0o644); err != nil {
					t.Fatal(err)
				}
				args = append(args, path)
			}
			cmd := exec.Command("systemd-analyze", args...)
			cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":", "XDG_RUNTIME_DIR="+dir)
			if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("%v: %v\n%s", cmd, err, out)
			}
		})
	}
}
