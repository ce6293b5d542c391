package procfs

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"gapless/internal/testwait"
)

func TestWaiting(t *testing.T) {
	tests := []struct {
		role  string
		how   How
		child bool // it is a descendant that waits
	}{
		{"epoll", Epoll, false},
		{"accept", Accept, false},
		{"accept4", Accept, false},
		{"accept-duplicate", Accept, false},
		{"poll", Poll, false},
		{"ppoll", Poll, false},
		{"select", Poll, false},
		{"parent-of-epoll", Epoll, true},
	}
	for _, tt := range tests {
		t.Run(tt.role, func(t *testing.T) {
			l, inodes, _ := listen(t)
			pid := worker(t, tt.role, l, nil).Process.Pid
			var got Evidence
			testwait.Until(t, "the worker is seen to wait", func() bool {
				var err error
				if got, err = Waiting(pid, inodes); err != nil {
					t.Fatal(err)
				}
				return got.Found()
			})
			if got.How != tt.how || (got.PID != pid) != tt.child {
				t.Errorf("got %+v, want %s by pid %d (a descendant: %v)", got, tt.how, pid, tt.child)
			}
			_, others, _ := listen(t)
			if got, err := Waiting(pid, others); err != nil || got.Found() {
				t.Errorf("another socket: got %+v, %v", got, err)
			}
		})
	}
}

func TestWaiting_NotYet(t *testing.T) {
	for _, role := range []string{"idle", "poll-for-writing"} {
		t.Run(role, func(t *testing.T) {
			l, inodes, _ := listen(t)
			pid := worker(t, role, l, nil).Process.Pid
			for range 50 {
				if got, err := Waiting(pid, inodes); err != nil || got != (Evidence{}) {
					t.Fatalf("got %+v, %v; want no evidence", got, err)
				}
			}
		})
	}
}

func TestWaiting_ProcessThatIsGone(t *testing.T) {
	cmd := exec.Command("/bin/true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := Waiting(cmd.Process.Pid, map[uint64]bool{1: true}); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("got %v, want os.ErrProcessDone", err)
	}
}

func TestWaiting_Zombie(t *testing.T) {
	cmd := exec.Command("/bin/true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	testwait.Until(t, "it is a zombie", func() bool {
		s, err := ReadStat(cmd.Process.Pid)
		return err == nil && s.Dead()
	})
	if _, err := Waiting(cmd.Process.Pid, map[uint64]bool{1: true}); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("got %v, want os.ErrProcessDone", err)
	}
}

// The rights of a container: root, but without CAP_SYS_PTRACE. The test runs itself again that way.
func TestProber_RootWithoutPtrace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("NOT TESTED: dropping rights takes root")
		return
	}
	cmd := exec.Command("setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace",
		"/proc/self/exe", "-test.run=^TestInner", "-test.v", "-test.count=1")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Args[3] = exe // setpriv's own /proc/self/exe is setpriv
	cmd.Env = append(os.Environ(), noPtraceVar+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := strings.Count("\n"+string(out), "\n--- PASS: TestInner"); n != 3 {
		t.Fatalf("%d inner tests passed, want 3:\n%s", n, out)
	}
}

var nobody = &syscall.Credential{Uid: 65534, Gid: 65534}

func TestInnerProber(t *testing.T) {
	if os.Getenv(noPtraceVar) == "" {
		return // run by TestProber_RootWithoutPtrace
	}
	for _, role := range []string{"epoll", "accept", "poll", "select", "parent-of-epoll"} {
		t.Run(role, func(t *testing.T) {
			l, inodes, _ := listen(t)
			pid := worker(t, role, l, nobody).Process.Pid
			_, err := Waiting(pid, inodes)
			var rights *RightsError
			if !errors.Is(err, ErrNoRights) || !errors.As(err, &rights) || rights.PID != pid || rights.UID != 65534 || rights.GID != 65534 {
				t.Fatalf("the premise fails: we can read the worker: %v", err)
			}
			p := NewProber("/proc/self/exe", "probe")
			defer closeProber(t, p)
			var got Evidence
			testwait.Until(t, "the worker is seen to wait", func() bool {
				if got, err = p.Waiting(t.Context(), pid, inodes); err != nil {
					t.Fatal(err)
				}
				return got.Found()
			})
			if (got.PID != pid) != (role == "parent-of-epoll") {
				t.Errorf("got %+v for pid %d", got, pid)
			}
			for range 20 {
				if _, err := p.Waiting(t.Context(), pid, inodes); err != nil {
					t.Fatal(err)
				}
			}
			if len(p.helpers) != 1 {
				t.Errorf("%d helpers, want one resident", len(p.helpers))
			}
			if err := p.Rest(); err != nil || len(p.helpers) != 0 {
				t.Errorf("%d helpers at rest, %v", len(p.helpers), err)
			}
			if got, err := p.Waiting(t.Context(), pid, inodes); err != nil || !got.Found() {
				t.Errorf("after the rest: %+v, %v", got, err)
			}
		})
	}
}

func TestInnerProber_NotEvenTheHelperMay(t *testing.T) {
	if os.Getenv(noPtraceVar) == "" {
		return
	}
	l, inodes, _ := listen(t)
	pid := worker(t, "undumpable-epoll", l, nobody).Process.Pid
	p := NewProber("/proc/self/exe", "probe")
	defer closeProber(t, p)
	begin := time.Now()
	var err error
	testwait.Until(t, "the missing right is reported", func() bool {
		_, err = p.Waiting(t.Context(), pid, inodes)
		return err != nil
	})
	var rights *RightsError
	if !errors.As(err, &rights) || rights.PID != pid || rights.UID != 65534 {
		t.Errorf("got %v, want a RightsError for pid %d", err, pid)
	}
	if d := time.Since(begin); d < patience {
		t.Errorf("reported after %v: a worker that is just changing its user would fail", d)
	}
}

func TestInnerProber_BadHelper(t *testing.T) {
	if os.Getenv(noPtraceVar) == "" {
		return
	}
	l, inodes, _ := listen(t)
	pid := worker(t, "epoll", l, nobody).Process.Pid
	t.Run("missing", func(t *testing.T) {
		p := NewProber("/nonexistent/gapless", "probe")
		defer closeProber(t, p)
		if _, err := p.look(t.Context(), pid, inodes); !errors.Is(err, ErrNoRights) || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("got %v, want ErrNoRights with its cause", err)
		}
	})
	t.Run("mute", func(t *testing.T) {
		p := NewProber("/proc/self/exe", "mute-probe")
		defer closeProber(t, p)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := p.Waiting(ctx, pid, inodes); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrNoRights) {
			t.Errorf("got %v, want the deadline alone", err)
		}
	})
	t.Run("killed between two questions", func(t *testing.T) {
		p := NewProber("/proc/self/exe", "probe")
		defer closeProber(t, p)
		if _, err := p.Waiting(t.Context(), pid, inodes); err != nil {
			t.Fatal(err)
		}
		for _, h := range p.helpers {
			h.proc.Signal(syscall.SIGKILL)
			h.proc.Status()
		}
		if _, err := p.Waiting(t.Context(), pid, inodes); err == nil || errors.Is(err, ErrNoRights) {
			t.Errorf("got %v, want a passing error", err)
		}
		if got, err := p.Waiting(t.Context(), pid, inodes); err != nil || !got.Found() {
			t.Errorf("the next question: %+v, %v", got, err)
		}
	})
}

func closeProber(t *testing.T, p *Prober) {
	t.Helper()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if list, err := Children(os.Getpid()); err != nil {
		t.Error(err)
	} else {
		for _, pid := range list {
			if args, _ := Cmdline(pid); len(args) == 2 && strings.HasSuffix(args[1], "probe") {
				t.Errorf("helper %d is left", pid)
			}
		}
	}
}

func TestProber_ToleratesForASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewProber()
		denied := &RightsError{PID: 7, UID: 1, GID: 1, Err: syscall.EACCES}
		steps := []struct {
			name string
			wait time.Duration
			in   error
			want error
		}{
			{"first denial", 0, denied, nil},
			{"still changing its user", patience - 1, denied, nil},
			{"readable", 0, nil, nil},
			{"denied anew", time.Hour, denied, nil},
			{"for good", patience, denied, ErrNoRights},
			{"another process with the PID", time.Hour, denied, nil},
			{"for good as well", patience, denied, ErrNoRights},
			{"gone", 0, os.ErrProcessDone, os.ErrProcessDone},
		}
		for _, s := range steps {
			time.Sleep(s.wait) //nolint:forbidigo // the bubble's clock
			if got := p.tolerate(7, s.in); !errors.Is(got, s.want) {
				t.Errorf("%s: got %v, want %v", s.name, got, s.want)
			}
		}
	})
}

func TestProber_Closed(t *testing.T) {
	p := NewProber("/proc/self/exe", "probe")
	closeProber(t, p)
	if _, err := p.helper(t.Context(), identity{65534, 65534}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v, want os.ErrClosed", err)
	}
}

func TestProbeMain_RefusesNonsense(t *testing.T) {
	in := strings.NewReader("{}\nnonsense\n{\"become\":{\"uid\":0,\"gid\":0}}\n{\"pid\":1,\"become\":{\"uid\":1,\"gid\":1}}\n")
	var out strings.Builder
	if err := ProbeMain(in, &out); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), `"kind":"other"`); n != 4 {
		t.Errorf("%d of 4 requests refused:\n%s", n, &out)
	}
}
