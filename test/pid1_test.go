//go:build linux

package test

import (
	"syscall"
	"testing"
)

// As PID 1 of a container: what its workers leave behind is reaped (the harness looks for zombies all the time), upgrades
// and the death of a master are as elsewhere, TERM drains, and the exit status is gapless's.
func TestPID1(t *testing.T) {
	t.Parallel()
	orphans := `for i in 1 2 3; do (sleep 0.$i & sleep 0.0$i &) & done; exec "$@"`
	s := prepare(t)
	s.run(options{first: true, flags: []string{"-w", "2"}, command: []string{"sh", "-c", orphans, "sh", s.bin, "app"}})
	s.await("the first workers are ready", msg("Application startup complete"))
	s.get("/").generation(1)
	s.upgrade(2)
	eventually(t, patience, "generation 2 answers", func() bool { return s.get("/").header.Get("X-Gapless-Generation") == "2" })
	dead := s.inCharge()
	signal(t, dead, syscall.SIGKILL)
	eventually(t, patience, "another master is in charge", func() bool {
		ms := s.masters()
		return len(ms) == 1 && ms[0].PID != dead && len(s.out.find(msg(tookPlace))) == 1
	})
	s.upgrade(3)
	slow := s.ask("/slow?ms=1500")
	s.inFlight(slow)
	s.signal(syscall.SIGTERM)
	slow.answer(t).generation(3)
	s.exits(0)
}

// What goes wrong at the start is told by the exit status, which a container's runtime looks at.
func TestPID1_ExitStatus(t *testing.T) {
	t.Parallel()
	s := launch(t, options{first: true, command: []string{"sh", "-c", "exit 7"}})
	s.exits(1)
}

// An order to end at once is obeyed, also by PID 1, which the kernel protects from signals that it does not handle.
func TestPID1_EndsAtOnce(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	s.run(options{first: true, command: role("ignores-term")})
	s.await("the first workers are ready", msg("Application startup complete"))
	s.signal(syscall.SIGTERM)
	s.signal(syscall.SIGTERM)
	s.exits(0)
}
