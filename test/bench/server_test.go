//go:build linux

package bench

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gapless/internal/procfs"
	"gapless/internal/testwait"
)

// patience bounds every wait: a benchmark that hangs should fail and not stay.
const patience = 60 * time.Second

// server is a gapless that runs, or a bare server.
type server struct {
	b       testing.TB
	cmd     *exec.Cmd
	addr    string
	started time.Duration // from the start of the process to its saying that it serves
	events  chan event
	readers sync.WaitGroup
}

// event is a line of gapless's log.
type event struct {
	Msg        string   `json:"msg"`
	Level      string   `json:"level"`
	Generation int      `json:"generation"`
	Addresses  []string `json:"addresses"`
	Reason     string   `json:"reason"`
	at         time.Time
}

// run starts gapless on a free port with flags and command and waits until it serves.
func run(b testing.TB, env []string, flags []string, command ...string) *server {
	b.Helper()
	args := append([]string{"run", "--port", "0", "--log-format", "json"}, flags...)
	if len(command) > 0 {
		args = append(append(args, "--"), command...)
	}
	s := &server{b: b, cmd: exec.Command(built.gapless, args...), events: make(chan event, 4096)}
	s.cmd.Env = append(os.Environ(), env...)
	s.cmd.Dir = built.dir
	log, err := s.cmd.StderrPipe()
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	if err := s.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	s.readers.Go(func() { s.read(log) })
	b.Cleanup(s.stop)
	e := s.await("Application startup complete")
	s.started = e.at.Sub(began)
	s.addr = strings.TrimPrefix(e.Addresses[0], "http://")
	return s
}

// bare starts the handler in one plain net/http process, or in the role that env names.
func bare(b testing.TB, env ...string) *server {
	b.Helper()
	s := &server{b: b, cmd: exec.Command(built.self)}
	s.cmd.Env = append(append(os.Environ(), roleVariable+"="+roleBare), env...)
	// A session of its own, as workers have and as an init system would give it: the kernel shares the processors out
	// by sessions first (sched_autogroup_enabled), and one with the load generator is worth 5 % more requests.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	s.cmd.Stderr = os.Stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.stop)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatalf("the bare server's address: %v", err)
	}
	s.addr = strings.TrimSpace(line)
	return s
}

// read takes in the log. Lines that are not gapless's own are a worker's complaints.
func (s *server) read(log io.Reader) {
	defer close(s.events)
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		e := event{at: time.Now()}
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.Msg == "" {
			os.Stderr.WriteString(lines.Text() + "\n")
			continue
		}
		if e.Level == "error" || e.Level == "warn" {
			os.Stderr.WriteString(lines.Text() + "\n")
		}
		s.events <- e
	}
}

// await takes events until one has this message.
func (s *server) await(msg string) event {
	s.b.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		select {
		case e, ok := <-s.events:
			switch {
			case !ok:
				s.b.Fatalf("gapless has ended before %q", msg)
			case e.Msg == msg:
				return e
			case strings.HasPrefix(e.Msg, "Upgrade aborted"):
				s.b.Fatalf("%s: %s", e.Msg, e.Reason)
			}
		case <-limit.C:
			s.b.Fatalf("not within %v: %q", patience, msg)
		}
	}
}

func (s *server) upgrade() time.Time {
	s.b.Helper()
	at := time.Now()
	if err := s.cmd.Process.Signal(syscall.SIGUSR2); err != nil {
		s.b.Fatal(err)
	}
	return at
}

// stop ends the server in order, or at once if it takes too long.
func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(patience/2, func() { _ = s.cmd.Process.Signal(syscall.SIGQUIT) })
	defer late.Stop()
	if s.events != nil {
		for range s.events { // until its end: a full pipe would stop gapless
		}
	}
	s.readers.Wait()
	_ = s.cmd.Wait() // a bare server dies of TERM
}

// tree is the processes of a gapless.
type tree struct {
	managers []int // the parent and its masters
	workers  map[int][]int
}

// look reads the tree. A worker is known by the generation in its environment.
func (s *server) look() tree {
	s.b.Helper()
	t := tree{managers: []int{s.cmd.Process.Pid}, workers: map[int][]int{}}
	ps, err := procfs.Descendants(s.cmd.Process.Pid)
	if err != nil {
		s.b.Fatal(err)
	}
	for _, p := range ps {
		env, err := procfs.Environ(p.PID)
		if err != nil || p.Dead() {
			continue
		}
		generation := 0
		for _, kv := range env {
			if v, ok := strings.CutPrefix(kv, "GAPLESS_GENERATION="); ok {
				generation, _ = strconv.Atoi(v)
			}
		}
		if generation > 0 {
			t.workers[generation] = append(t.workers[generation], p.PID)
		} else {
			t.managers = append(t.managers, p.PID)
		}
	}
	return t
}

// settle waits until parent, one master and one generation of workers are all that runs.
func (s *server) settle(generation, workers int) tree {
	s.b.Helper()
	var t tree
	testwait.Until(s.b, "one generation alone", func() bool {
		t = s.look()
		return len(t.managers) == 2 && len(t.workers) == 1 && len(t.workers[generation]) == workers
	})
	return t
}

// pss is the memory of processes, in bytes, shared pages counted by their share.
func pss(b testing.TB, pids ...int) int64 {
	b.Helper()
	var sum int64
	for _, pid := range pids {
		m, err := procfs.ReadMemory(pid)
		if err != nil {
			b.Fatal(err)
		}
		if m.PSS == 0 {
			b.Fatalf("the PSS of %d may not be read", pid)
		}
		sum += m.PSS
	}
	return sum
}

// anonymous is the memory of processes that is no file's, in bytes: the binary's pages count less for each process the
// more of them share it, which would hide what a worker costs.
func anonymous(b testing.TB, pids ...int) int64 {
	b.Helper()
	var sum int64
	for _, pid := range pids {
		sum += field(b, pid, "smaps_rollup", "Pss_Anon:")
	}
	return sum
}

// field reads a size from a file of /proc/PID, in bytes.
func field(b testing.TB, pid int, file, name string) int64 {
	b.Helper()
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/" + file)
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, name); ok {
			kib, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib << 10
		}
	}
	b.Fatalf("no %s in %s of %d", name, file, pid)
	return 0
}
