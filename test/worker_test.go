//go:build linux

package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// A worker gets what the contract says, and nothing else.
func TestWorker_GetsWhatTheContractSays(t *testing.T) {
	t.Parallel()
	dir := publicDir(t)
	sock := filepath.Join(dir, "app.sock")
	v4, v6 := freePort(t), freePort(t)
	o := options{
		flags: []string{
			"--listen", fmt.Sprintf("api=127.0.0.1:%d", v4), "--listen", fmt.Sprintf("six=[::1]:%d", v6), "--listen", "local=unix:" + sock,
		},
		command: append(role("environment"), "{fd}", "{fd:six}", "{worker}", "{generation}", "{other}"),
		env: []string{
			"GAPLESS_WORKERS=2", "TABLEFLIP_X=1", "LISTEN_FDNAMES=stale", "WATCHDOG_USEC=1", "MAINPID=1", "KEPT=yes",
		},
	}
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	s := start(t, o)
	look := func(generation int) {
		var v view
		s.addr = fmt.Sprintf("127.0.0.1:%d", v4)
		get(t, s.addr, "/").into(&v)
		allowed := []string{"LISTEN_FDS=3", "LISTEN_FDNAMES=api:six:local", "WEB_CONCURRENCY=1", "KEPT=yes", fmt.Sprintf("GAPLESS_GENERATION=%d", generation), "GAPLESS_REVISION=1"}
		for _, want := range allowed {
			if !slices.Contains(v.Environ, want) {
				t.Errorf("generation %d: %s is missing", generation, want)
			}
		}
		known := []string{"GAPLESS_WORKER", "GAPLESS_GENERATION", "GAPLESS_REVISION", "GAPLESS_CHANNEL", "GAPLESS_HANDOFF", "GAPLESS_TICKETS",
			"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET"}
		for _, kv := range v.Environ {
			name, _, _ := strings.Cut(kv, "=")
			for _, prefix := range []string{"GAPLESS_", "TABLEFLIP_", "LISTEN_", "WATCHDOG_", "MAINPID", "NOTIFY_"} {
				if strings.HasPrefix(name, prefix) && !slices.Contains(known, name) {
					t.Errorf("generation %d: the worker has %s", generation, kv)
				}
			}
		}
		if !v.ListenPID {
			t.Error("LISTEN_PID is not the worker's")
		}
		// Three sockets, and what the variables name.
		extra := 0
		for _, kv := range v.Environ {
			for _, name := range []string{"GAPLESS_CHANNEL=", "GAPLESS_HANDOFF=", "GAPLESS_TICKETS="} {
				if strings.HasPrefix(kv, name) {
					extra++
				}
			}
		}
		if len(v.Descriptors) != 3+extra {
			t.Errorf("generation %d: %d descriptors from 3 on, want %d: %v", generation, len(v.Descriptors), 3+extra, v.Descriptors)
		}
		for fd := 3; fd < 6; fd++ {
			if !strings.HasPrefix(v.Descriptors[fd], "socket:") {
				t.Errorf("descriptor %d is %q", fd, v.Descriptors[fd])
			}
			if !v.NonBlock[fd] {
				t.Errorf("generation %d: descriptor %d has lost O_NONBLOCK", generation, fd)
			}
			if fd < 5 && (v.NoDelay[fd] != 1 || v.Protocol[fd] != unix.IPPROTO_TCP) {
				t.Errorf("descriptor %d: TCP_NODELAY %d, protocol %d", fd, v.NoDelay[fd], v.Protocol[fd])
			}
		}
		if v.NofileSoft != before.Max || v.NofileHard != before.Max {
			t.Errorf("open files: %d of %d, allowed %d", v.NofileSoft, v.NofileHard, before.Max)
		}
		if !v.Group {
			t.Error("the worker leads no process group")
		}
		if want := []string{"3", "4", v.slot(), fmt.Sprint(generation), "{other}"}; !slices.Equal(v.Args, want) {
			t.Errorf("arguments %q, want %q", v.Args, want)
		}
	}
	look(1)
	s.upgrade(2)
	s.settled(2, 2)
	look(2)
	var v view
	get(t, "unix:"+sock, "/").into(&v)
	s.stop()
	if _, err := os.Stat(sock); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket file is left: %v", err)
	}
}

func (v view) slot() string {
	for _, kv := range v.Environ {
		if n, ok := strings.CutPrefix(kv, "GAPLESS_WORKER="); ok {
			return n
		}
	}
	return ""
}

// O_NONBLOCK belongs to the socket and not to a descriptor of it: whoever clears it, clears it for all, and a server with
// an event loop then blocks in accept(2). So it must be there at any moment, whatever gapless starts.
func TestWorker_SocketsNeverBlock(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"--before-start", "true"}})
	stop := make(chan struct{})
	var samples, cleared atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, p := range s.those(func(p proc) bool { return p.Generation > 0 }) {
				text, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/3", p.PID))
				for line := range strings.Lines(string(text)) {
					flags, ok := strings.CutPrefix(line, "flags:")
					n, parseErr := strconv.ParseInt(strings.TrimSpace(flags), 8, 64)
					if err != nil || !ok || parseErr != nil {
						continue
					}
					if target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/3", p.PID)); !strings.HasPrefix(target, "socket:") {
						continue // it has ended, or is still the process that becomes the worker
					}
					if samples.Add(1); n&unix.O_NONBLOCK == 0 {
						cleared.Add(1)
					}
				}
			}
		}
	})
	const enough = 50 // a busy machine lets few be taken per upgrade
	for g := 2; g <= 6 || g <= 30 && samples.Load() < enough; g++ {
		s.upgrade(g)
		s.settled(g, 2)
	}
	close(stop)
	wg.Wait()
	if cleared.Load() > 0 || samples.Load() < enough {
		t.Errorf("O_NONBLOCK was missing in %d of %d samples", cleared.Load(), samples.Load())
	}
	s.stop()
}

// All addresses serve, over upgrades too.
func TestListen_SeveralAddresses(t *testing.T) {
	t.Parallel()
	dir := publicDir(t)
	addrs := []string{fmt.Sprintf("127.0.0.1:%d", freePort(t)), fmt.Sprintf("[::1]:%d", freePort(t)), "unix:" + filepath.Join(dir, "a.sock"), "unix:" + filepath.Join(dir, "b.sock")}
	var flags []string
	for _, a := range addrs {
		flags = append(flags, "--listen", a)
	}
	// The Go package serves the first name; the others need a server that takes them all.
	s := start(t, options{flags: flags, command: role("all-listeners")})
	for g := 1; g <= 3; g++ {
		if g > 1 {
			s.upgrade(g)
			s.settled(g, 2)
		}
		for _, a := range addrs {
			for range 4 {
				get(t, a, "/").generation(g)
			}
		}
	}
	s.stop()
	for _, a := range addrs {
		if _, err := tryGet(t, a, "/"); err == nil {
			t.Errorf("%s still answers", a)
		}
	}
}

// Previous steps run once per generation, in order, before its workers; a failure aborts.
func TestBeforeStart(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	trace := filepath.Join(s.dir, "trace")
	s.run(options{flags: []string{
		"--before-start", "echo one $GAPLESS_GENERATION >> " + trace, "--before-start", "echo printed by step two; echo two >> " + trace + "; test ! -e broken || exit 9",
	}})
	s.await("the first workers are ready", msg("Application startup complete"))
	want := func(text string) {
		t.Helper()
		b, err := os.ReadFile(trace)
		if err != nil || strings.Join(strings.Fields(string(b)), " ") != text {
			t.Errorf("the steps wrote %q (%v), want %q", b, err, text)
		}
	}
	want("one 1 two")
	s.upgrade(2)
	want("one 1 two one 2 two")
	writeTo(t, filepath.Join(s.dir, "broken"), "")
	if e := s.refused(3); !strings.Contains(e.Reason, "exit status 9") {
		t.Errorf("the reason is %q", e.Reason)
	}
	s.get("/").generation(2)
	if err := os.Remove(filepath.Join(s.dir, "broken")); err != nil {
		t.Fatal(err)
	}
	s.upgrade(4)
	want("one 1 two one 2 two one 3 two one 4 two")
	if !strings.Contains(s.out.text(), "printed by step two") {
		t.Error("what a step printed is not shown")
	}
	s.stop()
}

func writeTo(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Each way of counting as ready.
func TestReady(t *testing.T) {
	t.Run("log", func(t *testing.T) {
		t.Parallel()
		s := start(t, options{flags: []string{"--ready", "log=^now serving$"}, command: role("chatty", "E2E_LINES=2000")})
		s.get("/").generation(1)
		s.upgrade(2)
		s.settled(2, 2)
		s.stop()
		s.demandLines(2000, 2)
	})
	t.Run("notify", func(t *testing.T) {
		t.Parallel()
		gate := filepath.Join(t.TempDir(), "gate")
		s := launch(t, options{flags: []string{"--ready", "notify"}, command: role("notifies", "E2E_GATE="+gate)})
		eventually(t, patience, "it serves", func() bool { _, err := tryGet(t, s.addr, "/"); return err == nil })
		if len(s.out.find(msg("Worker is ready"))) > 0 {
			t.Error("ready before it said so")
		}
		writeTo(t, gate, "")
		s.await("it is ready", msg("Application startup complete"))
		s.upgrade(2)
		s.stop()
	})
	t.Run("delay", func(t *testing.T) {
		t.Parallel()
		s := start(t, options{flags: []string{"--ready", "delay=600ms"}, command: role("shutdown")})
		for _, e := range s.out.find(msg("Worker is ready")) {
			if e.Took < 0.6 {
				t.Errorf("ready after %v s", e.Took)
			}
		}
		s.stop()
	})
	t.Run("a server that blocks in accept", func(t *testing.T) {
		t.Parallel()
		s := start(t, options{flags: []string{"--accept", "shared"}, command: role("blocking")})
		if e := s.await("a worker is ready", msg("Worker is ready")); e.Reason != "accept" {
			t.Errorf("ready because %q", e.Reason)
		}
		s.get("/")
		s.upgrade(2)
		for range 10 {
			s.get("/")
		}
		s.settled(2, 2)
		s.stop()
	})
}

// demandLines demands every numbered line of the chatty workers of all generations, whole and in order.
func (s *server) demandLines(n, generations int) {
	s.t.Helper()
	text := s.out.text()
	for g := 1; g <= generations; g++ {
		for w := range 2 {
			for _, stream := range []string{"out", "err"} {
				from := 0
				for i := range n {
					line := fmt.Sprintf("%s %d.%d %d", stream, g, w, i)
					at := strings.Index(text[from:], line)
					if at < 0 {
						s.t.Fatalf("line %q is missing or out of order", line)
					}
					from += at
				}
			}
		}
	}
}

// What workers print is complete and in order, also without gapless in between.
func TestOutput_IsNeverLost(t *testing.T) {
	t.Parallel()
	s := start(t, options{command: role("chatty", "E2E_LINES=3000")})
	s.upgrade(2)
	s.settled(2, 2)
	s.stop()
	s.demandLines(3000, 2)
}
