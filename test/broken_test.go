//go:build linux

package test

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"gapless/internal/procfs"
)

// app is a command that a test can replace on disk: at first it is the built-in app.
type app struct {
	t    testing.TB
	path string
}

func newApp(t testing.TB) *app {
	t.Helper()
	a := &app{t, filepath.Join(t.TempDir(), "app")}
	a.good()
	return a
}

func (a *app) good() { a.becomes(built.gapless, "app") }

// role makes it play a role.
func (a *app) role(name string) {
	a.becomes(append([]string{"/usr/bin/env"}, role(name)[1:]...)...)
}

func (a *app) becomes(command ...string) {
	a.t.Helper()
	replaceFile(a.t, a.path, func(path string) error {
		return os.WriteFile(path, []byte("#!/bin/sh\nexec "+strings.Join(command, " ")+"\n"), 0o755)
	})
}

// foreignBinary is an executable for a machine that does not exist.
func foreignBinary(path string) error {
	b, err := os.ReadFile(built.gapless)
	if err != nil {
		return err
	}
	const machine = 18 // offset of e_machine in an ELF header
	binary.LittleEndian.PutUint16(b[machine:], 0x7777)
	return os.WriteFile(path, b[:1<<16], 0o755)
}

// usage is what a process occupies that must not grow.
type usage struct{ parent, master int }

func (u usage) String() string {
	return fmt.Sprintf("descriptors: parent %d, master %d", u.parent, u.master)
}

// descriptors counts those of the parent and of its only master, when nothing is under way: when the count has been the
// same for a while.
func (s *server) descriptors() usage {
	s.t.Helper()
	var last usage
	same := 0
	eventually(s.t, patience, "a steady number of descriptors", func() bool {
		u := s.count()
		if u == last && u.master > 0 {
			same++
		} else {
			last, same = u, 0
		}
		return same >= 25
	})
	return last
}

func (s *server) count() (u usage) {
	ms := s.masters()
	if len(ms) != 1 {
		return usage{}
	}
	u.master, _ = procfs.OpenFiles(ms[0].PID)
	u.parent, _ = procfs.OpenFiles(s.pid())
	return u
}

// A release that cannot work leaves no trace but a log line, and does not stand in the way of the next one.
func TestUpgrade_BrokenReleaseIsAborted(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	s := start(t, options{flags: []string{"--start-timeout", slower(time.Second).String()}, command: []string{a.path}})
	broken := []struct {
		name   string
		spoil  func()
		reason string // a regular expression for the reason and the last lines
	}{
		{"the binary is missing", func() { os.Remove(s.bin) }, `no such file`},
		{"the binary exits at once", func() { s.script("echo wrong machine; exit 3") }, `exit|ended`},
		{"the binary is for another machine", func() { s.replace(foreignBinary) }, `exec format error`},
		{"the binary is not executable", func() {
			s.replace(func(path string) error { return os.WriteFile(path, nil, 0o644) })
		}, `permission denied`},
		{"the command is missing", func() { os.Remove(a.path) }, `command .*app.*: no such file`},
		{"a worker never becomes ready", func() { a.role("never-ready") }, `READY=1|--ready`},
		{"a worker exits at once", func() { a.role("exits-at-once") }, `exit status 0`},
		{"a worker fails with a message", func() { a.role("exits-3") }, `(?s)exit status 3.*the database is missing`},
		{"a worker is for another machine", func() { replaceFile(t, a.path, foreignBinary) }, `exec format error`},
	}
	eventually(t, patience, "the first workers run", func() bool { return len(s.workers(1)) == 2 })
	// Lanes that were opened for a generation stay open, for the next one: the first attempt makes them.
	generation := 2
	a.role("exits-at-once")
	s.refused(generation)
	a.good()
	before := s.descriptors()
	p := plan{addr: s.addr, streams: postStreams("/echo", requestsPerSecond()/2), every: 100 * time.Millisecond, tail: time.Second}
	r := p.under(t, len(broken), func(i int) {
		tt := broken[i]
		generation++
		tt.spoil()
		e := s.refused(generation)
		if text := e.Reason + " " + strings.Join(e.LastLines, " ") + s.out.text(); !regexp.MustCompile(tt.reason).MatchString(text) {
			t.Errorf("%s: the reason is %q, last lines %q; want something like %s", tt.name, e.Reason, e.LastLines, tt.reason)
		}
		s.goodBinary()
		a.good()
		if left := s.workers(generation); len(left) > 0 {
			t.Errorf("%s: when the abort was logged, there still were\n%s", tt.name, list(left))
		}
		if ms := s.masters(); len(ms) != 1 {
			t.Errorf("%s: %d masters when the abort was logged:\n%s", tt.name, len(ms), list(ms))
		}
		if !became(time.Second, func() bool { return s.count() == before }) {
			t.Errorf("%s: %v; before: %v", tt.name, s.descriptors(), before)
		}
	})
	r.untouched(t, p)
	if len(s.workers(1)) != 2 {
		t.Errorf("generation 1 has changed:\n%s", list(s.tree()))
	}
	generation++
	s.upgrade(generation)
	s.settled(generation, 2)
	s.stop()
}

// A binary that starts and then says nothing is given up, too.
func TestUpgrade_HangingBinaryIsAborted(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"--start-timeout", "2s"}})
	if err := os.Remove(s.bin); err != nil {
		t.Fatal(err)
	}
	s.refused(2)
	before := s.descriptors()
	s.script("sleep 600 & sleep 600")
	e := s.refused(3)
	if e.Reason == "" {
		t.Error("no reason is logged")
	}
	eventually(t, 5*time.Second, "nothing of the hanging binary is left", func() bool { return len(s.tree()) == 3 })
	if after := s.descriptors(); after != before {
		t.Errorf("%v; before: %v", after, before)
	}
	s.goodBinary()
	s.upgrade(4)
	s.settled(4, 2)
	s.stop()
}

// A release whose workers die right after they were ready keeps being restarted, and the next one is taken.
func TestUpgrade_CrashAfterReadyIsSurvived(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	s := start(t, options{command: []string{a.path}})
	a.role("crashes-after-ready")
	s.upgrade(2)
	died := func(e event) bool {
		return e.Msg == "Finished worker process" && e.Generation == 2 && strings.Contains(e.Reason, "7")
	}
	eventually(t, patience, "workers of generation 2 are restarted over and over", func() bool { return len(s.out.find(died)) >= 6 })
	if s.gone() {
		t.Fatal("gapless has ended")
	}
	a.good()
	s.upgrade(3)
	s.settled(3, 2)
	s.get("/").generation(3)
	s.stop()
}
