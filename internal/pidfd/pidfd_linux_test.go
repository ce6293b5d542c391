package pidfd

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a shell script as a child of its own process group; release ends its standard input.
func start(t *testing.T, script string) (p *Process, release func()) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var once sync.Once
	release = func() { once.Do(func() { w.Close() }) }
	p, err = Start("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{r.Fd(), 1, 2},
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		release()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.SignalGroup(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
		release()
		p.Close()
	})
	return p, release
}

func TestProcess_StatusOfAChild(t *testing.T) {
	tests := []struct {
		name   string
		script string
		signal syscall.Signal
		want   Status
		text   string
	}{
		{"exits 0", "read x; exit 0", 0, Status{Known: true}, "exit status 0"},
		{"exits 7", "read x; exit 7", 0, Status{Known: true, Code: 7}, "exit status 7"},
		{"is terminated", "read x", syscall.SIGTERM, Status{Known: true, Signal: syscall.SIGTERM}, "signal: terminated"},
		{"is killed", "trap '' TERM; read x", syscall.SIGKILL, Status{Known: true, Signal: syscall.SIGKILL}, "signal: killed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, release := start(t, tt.script)
			select {
			case <-p.Done():
				t.Fatal("done before the process ended")
			default:
			}
			if tt.signal != 0 {
				if err := p.Signal(tt.signal); err != nil {
					t.Fatal(err)
				}
			} else {
				release()
			}
			got, err := p.Wait(t.Context())
			if err != nil || got != tt.want || got.String() != tt.text {
				t.Errorf("got %+v (%s), %v; want %+v (%s)", got, got, err, tt.want, tt.text)
			}
			if p.Status() != tt.want {
				t.Errorf("a second look says %v", p.Status())
			}
			if err := p.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
				t.Errorf("signal after the end: %v", err)
			}
			if err := unix.Kill(p.PID(), 0); err == nil {
				t.Error("the child was left as a zombie")
			}
		})
	}
}

// stranger starts a shell (parent) that starts the real subject, prints its PID and then does what then says.
func stranger(t *testing.T, subject, then string) (p *Process, parent int, release func()) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "exec 3<&0; ("+subject+") <&3 & echo $!; exec 3<&-; "+then)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if p, err = Open(pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p, cmd.Process.Pid, func() { in.Close() }
}

// becomes polls until a process runs another program: the kernel has no event for it.
func becomes(t *testing.T, pid int, command string) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for {
		text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
		if err != nil {
			t.Fatal(err)
		}
		if strings.TrimSpace(string(text)) == command {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("pid %d is still %q", pid, text)
		}
	}
}

func TestProcess_StatusOfAStranger(t *testing.T) {
	t.Run("reaped by its parent", func(t *testing.T) {
		p, _, release := stranger(t, "read x; exit 9", "wait")
		release()
		if got := p.Status(); got != (Status{Known: true, Code: 9}) {
			t.Errorf("got %v, want exit status 9 (needs Linux 6.15 or later)", got)
		}
	})
	t.Run("never reaped", func(t *testing.T) {
		p, parent, release := stranger(t, "read x; exit 9", "exec sleep 60")
		becomes(t, parent, "sleep") // until then it is a shell, which reaps
		release()
		<-p.Done()
		if got := p.Status(); got != (Status{}) || got.String() != "exit status unknown" {
			t.Errorf("got %+v, want unknown", got)
		}
	})
	t.Run("an own child that other code reaps", func(t *testing.T) {
		cmd := exec.Command("/bin/sh", "-c", "read x; exit 4")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		p, err := Open(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		in.Close()
		cmd.Wait() // either of the two reaps it
		if got := p.Status(); got != (Status{Known: true, Code: 4}) {
			t.Errorf("got %v, want exit status 4", got)
		}
	})
}

func TestAdopt(t *testing.T) {
	p, release := start(t, "read x; exit 3")
	f, err := p.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	if q, err := Adopt(f, p.PID()+1); err == nil {
		q.Close()
		t.Error("adopted under a PID that the descriptor does not have")
	}
	q, err := Adopt(f, p.PID())
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	release()
	// Both watch the same child and one of them reaps it: the other learns the status from the kernel.
	for _, who := range []*Process{p, q} {
		if got := who.Status(); got != (Status{Known: true, Code: 3}) {
			t.Errorf("got %v, want exit status 3", got)
		}
	}
	late, err := Adopt(f, p.PID())
	if err != nil {
		t.Fatal("a descriptor of a process that is gone must be adoptable:", err)
	}
	defer late.Close()
	if got := late.Status(); got != (Status{Known: true, Code: 3}) {
		t.Errorf("adopted after the end: got %v, want exit status 3", got)
	}

	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if q, err := Adopt(r, 1); err == nil {
		q.Close()
		t.Error("adopted a pipe")
	}
}

func TestOpen_ProcessThatIsGone(t *testing.T) {
	cmd := exec.Command("/bin/true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if p, err := Open(cmd.Process.Pid); !errors.Is(err, os.ErrProcessDone) {
		if p != nil {
			p.Close()
		}
		t.Errorf("got %v, want os.ErrProcessDone", err)
	}
}

func TestStart_MissingFile(t *testing.T) {
	_, err := Start("/nonexistent/worker", []string{"worker"}, nil)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/nonexistent/worker") {
		t.Errorf("got %v", err)
	}
}

func TestProcess_WaitGivesUpWithItsContext(t *testing.T) {
	p, _ := start(t, "read x")
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := p.Wait(ctx); !errors.Is(err, cause) {
		t.Errorf("got %v, want the cause", err)
	}
}

func TestProcess_CloseFreesWaiters(t *testing.T) {
	p, _, _ := stranger(t, "read x", "wait")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := p.Wait(context.Background()); !errors.Is(err, os.ErrClosed) {
				t.Errorf("got %v, want os.ErrClosed", err)
			}
		})
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if err := p.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	if err := p.Signal(syscall.SIGTERM); err == nil {
		t.Error("a closed handle still signals")
	}
}

func TestProcess_SignalGroupReachesWhatTheLeaderLeft(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// The grandchild holds the write end: its death is the end of file.
	p, err := Start("/bin/sh", []string{"sh", "-c", "sleep 60 & exit 0"}, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, w.Fd(), 2}, Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if got := p.Status(); !got.Success() {
		t.Fatal(got)
	}
	if err := p.SignalGroup(syscall.SIGKILL); err != nil {
		t.Fatalf("the leader is reaped, the group is not empty: %v (needs Linux 6.9 or later)", err)
	}
	r.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadAll(r); err != nil {
		t.Errorf("the grandchild lives: %v", err)
	}
}

// Handles of one process, opened, asked and closed from many goroutines, while it dies.
func TestProcess_ManyHandles(t *testing.T) {
	p, release := start(t, "read x; exit 5")
	var wg sync.WaitGroup
	for range 16 {
		q, err := Open(p.PID())
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer q.Close()
			if got := q.Status(); got != (Status{Known: true, Code: 5}) {
				t.Errorf("got %v, want exit status 5", got)
			}
		})
	}
	release()
	wg.Wait()
}
