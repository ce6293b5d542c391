//go:build linux

package test

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"gapless/internal/procfs"
)

// sleepers are the processes of a command that hangs.
func (s *server) sleepers() []procfs.Stat {
	var found []procfs.Stat
	for _, p := range s.tree() {
		if p.Command == "sleep" {
			found = append(found, p.Stat)
		}
	}
	return found
}

// A command of the user's that a master runs does not outlive it, however that dies: what comes next would run beside it.
func TestStepKills_EndWithTheirMaster(t *testing.T) {
	for _, tt := range []struct {
		name   string
		flag   string // of run; "": the verification that begins is given
		begin  func(s *server, command string)
		victim func(s *server) int
	}{
		{"a previous step of an upgrade", "--before-start", func(s *server, _ string) { s.signal(syscall.SIGUSR2) }, func(s *server) int { return s.masterOf(2) }},
		{"a previous step of an upgrade, the master in charge", "--before-start", func(s *server, _ string) { s.signal(syscall.SIGUSR2) }, func(s *server) int { return s.first }},
		{"a previous step of a reload", "--before-start", func(s *server, _ string) { s.signal(syscall.SIGHUP) }, func(s *server) int { return s.first }},
		{"a verification", "", func(s *server, command string) { s.verbLater("upgrade", "--stage", "--verify", command) }, func(s *server) int { return s.first }},
		{"what follows a promotion", "--after-promote", func(s *server, _ string) { s.upgrade(2) }, (*server).inCharge},
		{"a verification, the parent", "", func(s *server, command string) { s.verbLater("upgrade", "--stage", "--verify", command) }, (*server).pid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			gate := filepath.Join(publicDir(t), "gate")
			// A child, one in a session of its own, and one that knows nothing of its environment.
			command := fmt.Sprintf("[ -e %s ] || exit 0; sleep 600 & setsid sh -c 'sleep 600; :' & env -i /bin/sh -c 'sleep 600; :' & wait", gate)
			var flags []string
			if tt.flag != "" {
				flags = []string{tt.flag, command}
			}
			s := start(t, options{flags: flags})
			writeTo(t, gate, "")
			tt.begin(s, command)
			var running []procfs.Stat
			eventually(t, patience, "the command runs", func() bool {
				running = s.sleepers()
				return len(running) == 3
			})
			if err := os.Remove(gate); err != nil {
				t.Fatal(err)
			}
			victim := tt.victim(s)
			kill(victim)
			eventually(t, patience, "nothing of the command is left", func() bool {
				for _, st := range running {
					if now, err := procfs.ReadStat(st.PID); err == nil && now.Start == st.Start && !now.Dead() {
						return false
					}
				}
				return true
			})
			if victim == s.pid() {
				<-s.exited
				eventually(t, patience, "all of it has ended", func() bool { return len(leftovers(s.mark)) == 0 })
				return
			}
			eventually(t, patience, "one master that lives", func() bool {
				ms := s.masters()
				return len(ms) == 1 && ms[0].PID != victim
			})
			generation := s.lastCharge()
			s.settled(generation, 2)
			s.get("/").generation(generation)
			s.verb("upgrade").demand(t, 0) // and another runs as ever
			s.stop()
		})
	}
}
