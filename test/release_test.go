//go:build linux

package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// releases makes two directories and a link to the first, as deploy tools do.
func releases(t *testing.T) (current string, moveTo func(name string)) {
	t.Helper()
	dir := publicDir(t)
	for _, r := range []string{"one", "two"} {
		if err := os.Mkdir(filepath.Join(dir, r), 0o755); err != nil {
			t.Fatal(err)
		}
		script := "#!/bin/sh\nexport E2E_RELEASE=" + r + " " + roleVariable + "=shutdown\nexec " + built.self + "\n"
		if err := os.WriteFile(filepath.Join(dir, r, "serve"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	current = filepath.Join(dir, "current")
	moveTo = func(name string) {
		replaceFile(t, current, func(path string) error { return os.Symlink(name, path) })
	}
	moveTo("one")
	return current, moveTo
}

// A link that has moved is followed by an upgrade, and by nothing else.
func TestChdir_IsFollowedByUpgradesAndPinnedForRestarts(t *testing.T) {
	t.Parallel()
	current, moveTo := releases(t)
	s := start(t, options{flags: []string{"--chdir", current}, command: []string{"./serve"}})
	demand := func(release string) {
		t.Helper()
		for range 6 {
			if r := s.get("/"); !strings.Contains(r.body, "/"+release+" release "+release+"\n") {
				t.Errorf("answer %q, want release %s", r.body, release)
			}
		}
	}
	demand("one")
	moveTo("two")
	for slot := range 2 {
		s.restartWorker(1, slot)
	}
	demand("one")
	s.upgrade(2)
	s.settled(2, 2)
	demand("two")
	s.stop()
}

// restartWorker kills a worker and waits for the one that replaces it.
func (s *server) restartWorker(generation, slot int) {
	s.t.Helper()
	old := s.worker(generation, slot)
	kill(old.PID)
	eventually(s.t, patience, fmt.Sprintf("worker %d is replaced", slot), func() bool {
		return len(s.out.find(func(e event) bool {
			return e.Msg == "Worker is ready" && e.Worker == slot && e.PID > 0 && e.PID != old.PID && len(s.those(func(p proc) bool { return p.PID == e.PID && p.Generation == generation })) > 0
		})) > 0
	})
}

// A program that was replaced on disk is taken by an upgrade, not by the restart of a worker: scripts and binaries.
func TestCommand_IsPinnedUntilAnUpgrade(t *testing.T) {
	for _, kind := range []string{"script", "binary"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(publicDir(t), "serve")
			put := func(release string) {
				replaceFile(t, path, func(to string) error {
					if kind == "script" {
						text := "#!/bin/sh\nexport E2E_RELEASE=" + release + " " + roleVariable + "=shutdown\nexec " + built.self + "\n"
						return os.WriteFile(to, []byte(text), 0o755)
					}
					if release == "one" {
						return os.Link(built.self, to)
					}
					return os.Link(built.gapless, to) // without its arguments it serves nothing
				})
			}
			put("one")
			s := start(t, options{command: []string{path}, env: []string{roleVariable + "=shutdown"}})
			put("two")
			s.restartWorker(1, 0)
			s.restartWorker(1, 1)
			for range 6 {
				if r := s.get("/").generation(1); kind == "script" && !strings.Contains(r.body, "release one") {
					t.Errorf("answer %q", r.body)
				}
			}
			if kind == "script" {
				s.upgrade(2)
				s.settled(2, 2)
				if r := s.get("/").generation(2); !strings.Contains(r.body, "release two") {
					t.Errorf("answer %q", r.body)
				}
			} else {
				s.refused(2)
			}
			s.stop()
		})
	}
}
