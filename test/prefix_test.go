//go:build linux

package test

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gapless/internal/control"

	"golang.org/x/sys/unix"
)

// printed is one line of the role prints, as --log-prefix shows it.
var printed = regexp.MustCompile(`^(?:\[worker (\d+) generation (\d+)\] )?line (\d+)\.(\d+) (\d+) (x{60}|last)$`)

// demandPrinted demands of what the role prints has printed that each line is whole, has its worker's prefix if it is to
// have one, and that of no worker a line is missing or out of order, up to its last. It returns how many workers there
// were.
func demandPrinted(t testing.TB, lines []string, prefixed bool) int {
	t.Helper()
	next, over := map[string]int{}, map[string]bool{}
	for _, l := range lines {
		if !strings.Contains(l, "line ") {
			continue
		}
		m := printed.FindStringSubmatch(l)
		if m == nil || prefixed != (m[1] != "") || prefixed && (m[1] != m[4] || m[2] != m[3]) {
			t.Fatalf("a line that nobody printed like this: %q", l)
		}
		who := m[3] + "." + m[4]
		if n, _ := strconv.Atoi(m[5]); n != next[who] || over[who] {
			t.Fatalf("worker %s: line %d follows line %d", who, n, next[who]-1)
		}
		next[who]++
		over[who] = m[6] == "last"
	}
	for who, n := range next {
		if !over[who] {
			t.Errorf("worker %s: %d lines, and not the last", who, n)
		}
	}
	return len(next)
}

// Lines that travel through gapless survive upgrades: none is lost, torn, reordered or without its prefix.
func TestLines_OverUpgrades(t *testing.T) {
	for _, tt := range []struct {
		name     string
		flags    []string
		prefixed bool
	}{
		{"log-prefix", []string{"--log-prefix"}, true},
		{"ready log", []string{"--ready", "log=^line .* 3 "}, false},
		{"both", []string{"--log-prefix", "--ready", "log=^line .* 3 "}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := start(t, options{flags: tt.flags, command: role("prints")})
			n := counted(4, 40)
			for g := 2; g <= n; g++ {
				s.upgrade(g)
				if g%2 == 0 {
					s.settled(g, 2) // else the next comes while lines of the one before are on their way
				}
			}
			s.verb("scale", "3").demand(t, 0)
			s.stop()
			_, lines := s.out.read()
			defer func() {
				for _, e := range s.out.find(func(e event) bool { return t.Failed() && e.State != "" }) {
					t.Logf("generation %d worker %d (pid %d): %s, %s", e.Generation, e.Worker, e.PID, e.Msg, e.Reason)
				}
			}()
			if workers := demandPrinted(t, lines, tt.prefixed); workers != 2*n+1 {
				t.Errorf("lines of %d workers, want %d", workers, 2*n+1)
			}
		})
	}
}

// With a standard output that nobody reads, workers go on serving, and gapless can be asked, upgraded and stopped.
func TestLines_BlockedOutputBlocksNobody(t *testing.T) {
	for _, tt := range []struct {
		name  string
		flags []string
	}{
		{"log-prefix", []string{"--log-prefix"}},
		{"ready log", []string{"--ready", "log=^line .* 0 "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := prepare(t)
			fifo := filepath.Join(s.dir, "stdout")
			if err := unix.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			reader, err := os.OpenFile(fifo, os.O_RDWR, 0) // so that opening waits for nobody
			if err != nil {
				t.Fatal(err)
			}
			defer reader.Close()
			if _, err := unix.FcntlInt(reader.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
				t.Fatal(err)
			}
			// Only standard output is blocked: gapless logs to standard error.
			s.run(options{flags: tt.flags, command: role("prints"), wrapper: []string{"/bin/sh", "-c", `exec "$@" > ` + fifo, "sh"}})
			s.await("the first workers are ready", msg("Application startup complete"))
			// How full depends on the size of what does not fit: it is full when nothing more comes.
			held, same := 0, 0
			eventually(t, patience, "the pipe is full", func() bool {
				n, err := unix.IoctlGetInt(int(reader.Fd()), unix.TIOCINQ)
				if same++; err != nil || n == 0 || n != held {
					held, same = n, 0
				}
				return same > 100
			})
			for range 10 {
				s.get("/").generation(1)
			}
			for g := 2; g <= 3; g++ {
				s.upgrade(g)
				for range 10 {
					s.get("/").generation(g)
				}
			}
			s.settled(3, 2)
			s.verb("scale", "3").demand(t, 0)
			if st := s.status(); st.State != control.StateServing {
				t.Errorf("it is %s: %s", st.State, st.DegradedReason)
			}
			s.stop()
		})
	}
}

// What a slow reader reads is in order; what was dropped for it is said, and nothing is torn.
func TestLines_SlowReader(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	fifo := filepath.Join(s.dir, "stdout")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(fifo, os.O_RDWR, 0) // so that opening waits for nobody
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	var wg sync.WaitGroup
	resume := make(chan struct{})
	wg.Go(func() {
		<-resume
		for sc := bufio.NewScanner(reader); sc.Scan(); {
			if sc.Text() == "end of the test" {
				return
			}
			lines = append(lines, sc.Text())
		}
	})
	s.run(options{flags: []string{"--log-prefix"}, command: role("chatty", "E2E_LINES=20000"),
		wrapper: []string{"/bin/sh", "-c", `exec "$@" > ` + fifo, "sh"}})
	s.await("the first workers are ready although nobody reads", msg("Application startup complete"))
	close(resume)
	s.get("/")
	s.stop()
	fmt.Fprintln(reader, "end of the test")
	wg.Wait()
	reader.Close()
	whole := regexp.MustCompile(`^\[worker (\d) generation 1\] (?:out 1\.(\d) (\d+) x{80}|now serving)$`)
	notice := regexp.MustCompile(`^gapless: (\d+) lines of workers were dropped`)
	seen, dropped, last := 0, 0, map[string]int{}
	for _, l := range lines {
		if m := notice.FindStringSubmatch(l); m != nil {
			n, _ := strconv.Atoi(m[1])
			dropped += n
			continue
		}
		m := whole.FindStringSubmatch(l)
		if m == nil {
			t.Fatalf("a line that nobody printed like this: %q", l)
		}
		seen++
		if m[2] == "" {
			continue
		}
		n, _ := strconv.Atoi(m[3])
		if before, ok := last[m[2]]; ok && n <= before || m[1] != m[2] {
			t.Fatalf("%q comes after line %d", l, before)
		}
		last[m[2]] = n
	}
	if want := 2 * 20001; seen+dropped != want {
		t.Errorf("%d lines read and %d said to be dropped, want %d together", seen, dropped, want)
	}
	t.Logf("%d lines read, %d dropped", seen, dropped)
}

// USR1 reaches the workers that catch it, and spares those that it would kill.
func TestUSR1_ReachesWhoCatchesIt(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		role    string
		catches bool
	}{{"reopens", true}, {"shutdown", false}, {"environment", false}} {
		t.Run(tt.role, func(t *testing.T) {
			t.Parallel()
			s := start(t, options{command: role(tt.role)})
			before := s.workers(1)
			s.signal(syscall.SIGUSR1)
			if tt.catches {
				for _, w := range before {
					eventually(t, patience, "it has reopened its log", func() bool { return strings.Contains(s.out.text(), fmt.Sprintf("reopened by %d", w.PID)) })
				}
			} else {
				// A Go program dies of USR1 unless it asks for it: nothing must come, for a while.
				quiet := time.NewTimer(300 * time.Millisecond)
				defer quiet.Stop()
				<-quiet.C
			}
			if now := s.workers(1); list(now) != list(before) && fmt.Sprint(pids(now)) != fmt.Sprint(pids(before)) {
				t.Errorf("the workers were\n%sand are\n%s", list(before), list(now))
			}
			s.stop()
		})
	}
	t.Run("a program with the default action", func(t *testing.T) {
		t.Parallel()
		a := newApp(t)
		// The shell stays, and would die of it.
		replaceFile(t, a.path, func(path string) error {
			return os.WriteFile(path, []byte("#!/bin/sh\n"+roleCommand("shutdown")+" &\ntrap 'kill $!' TERM\nwait\nwait\n"), 0o755)
		})
		s := start(t, options{command: []string{a.path}, flags: []string{"-w", "1"}})
		before := s.workers(1)
		s.signal(syscall.SIGUSR1)
		quiet := time.NewTimer(300 * time.Millisecond)
		defer quiet.Stop()
		<-quiet.C
		s.get("/")
		if now := s.workers(1); fmt.Sprint(pids(now)) != fmt.Sprint(pids(before)) {
			t.Errorf("the workers were\n%sand are\n%s", list(before), list(now))
		}
		s.stop()
	})
}
