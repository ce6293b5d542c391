package lifecycle

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"gapless/internal/notify"
	"gapless/internal/pidfd"

	"go.uber.org/zap"
)

// succession is a parent, whose govern is the test, with a master in charge, a, and one that is to follow it, b. Both are
// processes that wait for their end.
type succession struct {
	t    *testing.T
	p    *parent
	a, b *process
	end  map[*process]*os.File // closed, the process exits with 0
	over bool                  // there is no master any more
}

func newSuccession(t *testing.T) *succession {
	t.Helper()
	sock, err := notify.Listen()
	if err != nil {
		t.Fatal(err)
	}
	s := &succession{t: t, end: make(map[*process]*os.File), p: &parent{log: zap.NewNop(), sock: sock, ends: make(chan ended), timeout: make(chan *process),
		cleaned: make(chan struct{}), over: make(chan struct{}), store: newStore(), masters: make(map[int]*process),
		again: make(map[syscall.Signal]bool), up: newUpstream(func(string) string { return "" }, "", zap.NewNop())}}
	s.a, s.b = s.master(1), s.master(2)
	s.p.current, s.p.inCharge = s.a, true
	t.Cleanup(func() {
		for m, f := range s.end {
			f.Close()
			if m.overdue != nil {
				m.overdue.Stop()
			}
		}
		close(s.p.over)
		for m := range s.end {
			m.release()
		}
		for key := range s.p.store.entries {
			s.p.store.drop(key)
		}
		sock.Close()
	})
	return s
}

// master starts one that has stored what another needs to take its place.
func (s *succession) master(generation int) *process {
	s.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Close()
	proc, err := pidfd.Start("/bin/sh", []string{"sh", "-c", "read x; exit 0"}, &syscall.ProcAttr{
		Files: []uintptr{r.Fd(), 1, 2}, Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		s.t.Fatal(err)
	}
	m := s.p.adopt(proc, generation)
	s.end[m] = w
	fd, err := syscall.Open(os.DevNull, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err == nil {
		err = s.p.store.put(ledgerName+"0", m.PID(), []int{fd}, true)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return m
}

// announces has b's word heard that it takes charge.
func (s *succession) announces() {
	pid := s.b.PID()
	s.done(s.p.note(notify.Message{PID: pid, UID: os.Getuid(), Fields: map[string]string{"MAINPID": strconv.Itoa(pid)}}))
}

func (s *succession) done(over bool) { s.over = s.over || over }

// ends has a master end, and its end seen.
func (s *succession) ends(m *process, killed bool) {
	s.t.Helper()
	if killed {
		if err := m.Signal(syscall.SIGKILL); err != nil {
			s.t.Fatal(err)
		}
	} else {
		s.end[m].Close()
	}
	e := <-s.p.ends
	if e.master != m {
		s.t.Fatalf("another master has ended: %d", e.master.PID())
	}
	s.done(s.p.ended(e))
}

// hear takes in, as govern does, what the parent has told itself, and that cleaning up is done.
func (s *succession) hear() {
	s.t.Helper()
	for {
		_ = s.p.sock.SetReadDeadline(time.Now().Add(30 * time.Millisecond)) // what is told is there at once
		m, err := s.p.sock.ReceiveFDs()
		switch {
		case err == nil:
			s.done(s.p.note(m))
		case s.p.cleaning > 0:
			<-s.p.cleaned
			if s.p.cleaning--; s.p.orphaned != nil {
				s.done(s.p.decide())
			}
		default:
			return
		}
	}
}

// Who is in charge after the end of both, or whose place is taken, whatever is seen first.
func TestParent_FindsOutWhoWasInCharge(t *testing.T) {
	for _, tt := range []struct {
		name     string
		happens  func(s *succession)
		current  func(s *succession) *process
		orphaned func(s *succession) *process // its place is taken
		over     bool
	}{
		{name: "the candidate takes charge", happens: func(s *succession) { s.announces(); s.ends(s.a, false) },
			current: func(s *succession) *process { return s.b }},
		{name: "its predecessor ends before it is heard", happens: func(s *succession) { s.ends(s.a, false); s.announces() },
			current: func(s *succession) *process { return s.b }},
		{name: "it has died when its predecessor hands over", happens: func(s *succession) { s.announces(); s.ends(s.b, true); s.ends(s.a, false) },
			orphaned: func(s *succession) *process { return s.b }},
		{name: "it dies when its predecessor has handed over", happens: func(s *succession) { s.announces(); s.ends(s.a, false); s.ends(s.b, true) },
			orphaned: func(s *succession) *process { return s.b }},
		{name: "likewise, before it is heard", happens: func(s *succession) { s.ends(s.a, false); s.ends(s.b, true); s.announces() },
			orphaned: func(s *succession) *process { return s.b }},
		{name: "it dies and its predecessor serves on", happens: func(s *succession) { s.announces(); s.ends(s.b, true); s.p.overdue(s.a) },
			current: func(s *succession) *process { return s.a }},
		{name: "it dies without a word and its predecessor serves on", happens: func(s *succession) { s.ends(s.b, true) },
			current: func(s *succession) *process { return s.a }},
		{name: "both are killed, it first", happens: func(s *succession) { s.announces(); s.ends(s.b, true); s.ends(s.a, true) },
			orphaned: func(s *succession) *process { return s.a }},
		{name: "both are killed, it last and unheard", happens: func(s *succession) { s.ends(s.a, true); s.ends(s.b, true) },
			orphaned: func(s *succession) *process { return s.a }},
		{name: "its predecessor ends in order and it dies without a word", happens: func(s *succession) { s.ends(s.a, false); s.ends(s.b, true) },
			over: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSuccession(t)
			tt.happens(s)
			s.hear()
			name := func(m *process) string {
				switch m {
				case s.a:
					return "the predecessor"
				case s.b:
					return "the candidate"
				}
				return "nobody"
			}
			wantCurrent, wantOrphaned := "nobody", "nobody"
			if tt.current != nil {
				wantCurrent = name(tt.current(s))
			}
			if tt.orphaned != nil {
				wantOrphaned = name(tt.orphaned(s))
			}
			if got := name(s.p.current); got != wantCurrent {
				t.Errorf("in charge is %s, want %s", got, wantCurrent)
			}
			if s.over != tt.over {
				t.Errorf("over is %v, want %v", s.over, tt.over)
			}
			if planned := s.p.restartC != nil; planned != (tt.orphaned != nil) || planned && name(s.p.orphaned) != wantOrphaned {
				t.Errorf("a restart is planned: %v, in place of %s; want %s", planned, name(s.p.orphaned), wantOrphaned)
			}
			if s.p.fallen != nil {
				t.Error("a dead candidate is still undecided")
			}
		})
	}
}

// That a candidate runs a command may be heard only after its death has been seen. The command ends all the same.
func TestParent_EndsTheCommandOfACandidateThatIsHeardTooLate(t *testing.T) {
	s := newSuccession(t)
	const mark = "heard-late"
	command := exec.Command("setsid", "sleep", "600") // in no session of the candidate's
	command.Env = append(os.Environ(), stepVariable+"="+mark)
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	pid := s.b.PID()
	s.ends(s.b, true)
	fd, err := syscall.Open(os.DevNull, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.done(s.p.note(notify.Message{PID: pid, UID: os.Getuid(), Fields: map[string]string{"FDSTORE": "1", "FDNAME": stepPrefix + mark}, FDs: []int{fd}}))
	s.hear()
	select {
	case err := <-ended:
		if err == nil || err.Error() != "signal: killed" {
			t.Errorf("the command has ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		_ = command.Process.Kill()
		<-ended
		t.Error("the command goes on")
	}
	if len(s.p.store.takeSteps(pid)) > 0 {
		t.Error("the command is still in the store")
	}
}

// The notify socket holds a dozen messages. Where it is full as a master ends, the parent makes room, and must not wait for it.
func TestParent_TellsItselfBehindAFullSocket(t *testing.T) {
	s := newSuccession(t)
	sent := 0
	for c := s.dial(); ; sent++ {
		_ = c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := c.Write([]byte("STATUS=" + strconv.Itoa(sent))); errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	told := make(chan error, 1)
	go func() { told <- s.p.tellSelf(sentinelCharge) }()
	select {
	case err := <-told:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the parent waits for itself")
	}
	for i := range sent {
		if m, err := s.p.sock.Receive(); err != nil || m.Fields["STATUS"] != strconv.Itoa(i) {
			t.Fatalf("message %d: %v, %v", i, m.Fields, err)
		}
	}
	_ = s.p.sock.SetReadDeadline(time.Now().Add(10 * time.Second))
	if m, err := s.p.sock.Receive(); err != nil || m.Fields[sentinelField] != sentinelCharge || m.PID != os.Getpid() {
		t.Errorf("the last message is %v, %v", m.Fields, err)
	}
}

// dial connects to the parent's notify socket.
func (s *succession) dial() net.Conn {
	s.t.Helper()
	c, err := net.Dial("unixgram", s.p.sock.Address())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}
