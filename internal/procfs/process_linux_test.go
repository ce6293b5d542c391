package procfs

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"gapless/internal/testwait"
)

func TestParseStat(t *testing.T) {
	tail := " 1 2 3 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 5 0 987654 1 1"
	tests := []struct {
		name, line string
		want       Stat
		bad        bool
	}{
		{"plain", "42 (nginx) S" + tail, Stat{42, 1, 2, 3, 987654, 'S', 5, "nginx"}, false},
		{"spaces and parentheses", "42 (a) R (b) Z" + tail, Stat{42, 1, 2, 3, 987654, 'Z', 5, "a) R (b"}, false},
		{"empty command", "42 () X" + tail, Stat{42, 1, 2, 3, 987654, 'X', 5, ""}, false},
		{"cut", "42 (nginx) S 1 2 3", Stat{}, true},
		{"no command", "42 S" + tail, Stat{}, true},
		{"no number", "x (nginx) S" + tail, Stat{}, true},
		{"empty", "", Stat{}, true},
		{"parentheses the wrong way round", ")(", Stat{}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseStat(tt.line)
			if (err != nil) != tt.bad || got != tt.want {
				t.Errorf("got %+v, %v; want %+v", got, err, tt.want)
			}
		})
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add("42 (a) R (b) S 1 2 3 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 5 0 987654 1 1")
	f.Add(")(")
	f.Fuzz(func(t *testing.T, line string) {
		if s, err := parseStat(line); err == nil && s.State == 0 {
			t.Errorf("accepted without a state: %q", line)
		}
	})
}

func TestWatches(t *testing.T) {
	const info = "pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t9\n" +
		"tfd:        3 events:       19 data:                3  pos:0 ino:1f4 sdev:9\n" +
		"tfd:        4 events: 40000000 data:                4  pos:0 ino:1f5 sdev:9\n"
	tests := []struct {
		name string
		ino  uint64
		want bool
	}{
		{"watched", 0x1f4, true},
		{"one-shot that has fired", 0x1f5, false},
		{"not watched", 0x1f6, false},
		{"the descriptor's own inode", 9, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := watches(info, map[uint64]bool{tt.ino: true}); got != tt.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func FuzzWatches(f *testing.F) {
	f.Add("tfd:        3 events:       19 data:                3  pos:0 ino:1f4 sdev:9\n")
	f.Add("tfd: events: ino:")
	f.Fuzz(func(t *testing.T, text string) {
		if watches(text, map[uint64]bool{}) {
			t.Error("found a socket among none")
		}
		parseSyscall(text)
		parseAddr(text)
	})
}

func TestParseSyscall(t *testing.T) {
	tests := []struct {
		text string
		nr   int
		arg0 uint64
		ok   bool
	}{
		{"288 0x3 0x7ffd 0x7ffe 0x80000 0x0 0x0 0x7ffd1 0x7f1\n", 288, 3, true},
		{"running\n", 0, 0, false},
		{"-1 0x7ffd1 0x7f1\n", 0, 0, false},
		{"288 zz 0x0 0x0 0x0 0x0 0x0 0x0 0x0\n", 0, 0, false},
		{"", 0, 0, false},
	}
	for _, tt := range tests {
		nr, args, ok := parseSyscall(tt.text)
		if ok != tt.ok || ok && (nr != tt.nr || args[0] != tt.arg0) {
			t.Errorf("%q: got %d, %v, %v", tt.text, nr, args, ok)
		}
	}
}

func TestReadings_OfAWorker(t *testing.T) {
	l, _, _ := listen(t)
	cmd := worker(t, "idle", l, nil)
	pid := cmd.Process.Pid
	s, err := ReadStat(pid)
	if err != nil || s.PID != pid || s.Parent != os.Getpid() || s.Session != pid || s.Group != pid || s.Start == 0 || s.Dead() {
		t.Errorf("stat: %+v, %v", s, err)
	}
	if ok, err := EnvironHas(pid, "GAPLESS_TEST_MARK=a b"); !ok || err != nil {
		t.Errorf("environment: %v, %v", ok, err)
	}
	if ok, err := EnvironHas(pid, "GAPLESS_TEST_MARK=a"); ok || err != nil {
		t.Errorf("a prefix of a value counts: %v, %v", ok, err)
	}
	if args, err := Cmdline(pid); err != nil || !slices.Equal(args, cmd.Args) {
		t.Errorf("arguments: %q, %v", args, err)
	}
	want, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if exe, err := Exe(pid); err != nil || exe != want {
		t.Errorf("exe: %q, %v", exe, err)
	}
	if n, err := OpenFiles(pid); err != nil || n < 4 {
		t.Errorf("descriptors: %d, %v; it has at least 4", n, err)
	}
	if m, err := ReadMemory(pid); err != nil || m.RSS <= 0 || m.PSS <= 0 || m.PSS > m.RSS {
		t.Errorf("memory: %+v, %v", m, err)
	}
	if uid, gid := Owner(pid); uid != os.Geteuid() || gid != os.Getegid() {
		t.Errorf("owner: %d, %d", uid, gid)
	}
	if list, err := Children(os.Getpid()); err != nil || !slices.Contains(list, pid) {
		t.Errorf("children: %v, %v", list, err)
	}
	if list, err := childrenByScan(os.Getpid()); err != nil || !slices.Contains(list, pid) {
		t.Errorf("children by scan: %v, %v", list, err)
	}
}

func TestReadings_OfAProcessThatIsGone(t *testing.T) {
	cmd := exec.Command("/bin/true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	readings := map[string]func() error{
		"ReadStat":    func() error { _, err := ReadStat(pid); return err },
		"Children":    func() error { _, err := Children(pid); return err },
		"Descendants": func() error { _, err := Descendants(pid); return err },
		"Environ":     func() error { _, err := Environ(pid); return err },
		"Cmdline":     func() error { _, err := Cmdline(pid); return err },
		"Exe":         func() error { _, err := Exe(pid); return err },
		"OpenFiles":   func() error { _, err := OpenFiles(pid); return err },
		"ReadMemory":  func() error { _, err := ReadMemory(pid); return err },
	}
	for name, read := range readings {
		if err := read(); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("%s: got %v, want os.ErrProcessDone", name, err)
		}
	}
}

// shell starts a script in a session of its own; its standard output is the returned pipe's other end.
func shell(t *testing.T, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		SignalSession(cmd.Process.Pid, syscall.SIGKILL)
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd
}

func TestSignalDescendants(t *testing.T) {
	cmd := shell(t, "sh -c 'sleep 600 & sleep 600 & wait' & wait; read forever < /dev/zero")
	pid := cmd.Process.Pid
	testwait.Until(t, "four processes run", func() bool {
		list, err := Descendants(pid)
		return err == nil && len(list) == 3
	})
	n, err := SignalDescendants(pid, syscall.SIGKILL)
	if n != 3 || err != nil {
		t.Errorf("reached %d, %v; want 3", n, err)
	}
	if s, err := ReadStat(pid); err != nil || s.Dead() {
		t.Errorf("the ancestor itself was hit: %+v, %v", s, err)
	}
	if n, err := SignalDescendants(1<<22+1, syscall.SIGKILL); n != 0 || err != nil {
		t.Errorf("of a process that is gone: %d, %v", n, err)
	}
}

func TestSignalSession(t *testing.T) {
	other := shell(t, "sleep 600")
	cmd := shell(t, "sleep 600 & sleep 600 & wait")
	session := cmd.Process.Pid
	testwait.Until(t, "three members run", func() bool {
		list, err := SessionMembers(session)
		return err == nil && len(list) == 3
	})
	n, err := SignalSession(session, syscall.SIGKILL)
	if n != 3 || err != nil {
		t.Errorf("reached %d, %v; want 3", n, err)
	}
	testwait.Until(t, "no member lives", func() bool {
		list, err := SessionMembers(session)
		return err == nil && !slices.ContainsFunc(list, func(s Stat) bool { return !s.Dead() })
	})
	if s, err := ReadStat(other.Process.Pid); err != nil || s.Dead() {
		t.Errorf("another session was hit: %+v, %v", s, err)
	}
}

// A member that forks without end until it is killed must not leave one that was born between listing and signal.
func TestSignalSession_ForkingMember(t *testing.T) {
	for range 5 {
		cmd := shell(t, "i=0; while [ $i -lt 300 ]; do sleep 600 & i=$((i+1)); done; wait")
		session := cmd.Process.Pid
		testwait.Until(t, "some members run", func() bool {
			list, err := SessionMembers(session)
			return err == nil && len(list) > 20
		})
		if _, err := SignalSession(session, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		testwait.Until(t, "no member lives", func() bool {
			list, err := SessionMembers(session)
			return err == nil && !slices.ContainsFunc(list, func(s Stat) bool { return !s.Dead() })
		})
	}
}

func TestSignalOne_SparesAReusedPID(t *testing.T) {
	cmd := shell(t, "sleep 600")
	s, err := ReadStat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	earlier := s
	earlier.Start-- // what was listed had this PID before
	if sent, err := signalOne(earlier, syscall.SIGKILL, func(Stat) bool { return true }); sent || err != nil {
		t.Errorf("signalled another process: %v, %v", sent, err)
	}
	if sent, err := signalOne(s, syscall.SIGKILL, func(Stat) bool { return false }); sent || err != nil {
		t.Errorf("signalled a process that has left the session: %v, %v", sent, err)
	}
	if s, err := ReadStat(s.PID); err != nil || s.Dead() {
		t.Errorf("it is dead: %+v, %v", s, err)
	}
}

func TestPortOwner(t *testing.T) {
	self, err := ReadStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	me := "pid " + strconv.Itoa(self.PID) + " (" + self.Command + ")"
	listenOn := func(network, addr string) net.Listener {
		l, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	four := listenOn("tcp4", "127.0.0.1:0").Addr().String()
	six := listenOn("tcp6", "[::1]:0").Addr().String()
	file := filepath.Join(t.TempDir(), "a b.sock")
	listenOn("unix", file)
	_, port4, _ := net.SplitHostPort(four)
	_, port6, _ := net.SplitHostPort(six)
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	tests := []struct{ name, network, addr, want string }{
		{"same address", "tcp", four, me},
		{"any address against ours", "tcp", ":" + port4, me},
		{"a name", "tcp4", "localhost:" + port4, me},
		{"another address", "tcp", "127.0.0.2:" + port4, ""},
		{"IPv6", "tcp6", six, me},
		{"any against IPv6", "tcp", ":" + port6, me},
		{"nobody", "tcp", free.Addr().String(), ""},
		{"unix", "unix", file, me},
		{"another unix path", "unix", file + "x", ""},
		{"nonsense", "tcp", "no port", ""},
		{"another network", "udp", four, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := PortOwner(tt.network, tt.addr); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestListeners_StopsAtTheFirstConnection(t *testing.T) {
	const table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n" +
		"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 501 1 0 100 0 0 10 0\n" +
		"   1: 0100007F:1F90 0100007F:A000 01 00000000:00000000 00:00000000 00000000     0        0 502 1 0 100 0 0 10 0\n" +
		"   2: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 503 1 0 100 0 0 10 0\n"
	inodes := map[uint64]bool{}
	listeners(strings.NewReader(table), netip.MustParseAddrPort("127.0.0.1:8080"), inodes)
	if len(inodes) != 1 || !inodes[501] {
		t.Errorf("got %v, want 501 alone", inodes)
	}
}
