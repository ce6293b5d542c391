package workerpool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"gapless/internal/channel"
	"gapless/internal/packet"
	"gapless/internal/pidfd"
	"gapless/internal/testwait"
)

var exited3 = pidfd.Status{Known: true, Code: 3}

func TestPool_StartsAllAndAdmitsEach(t *testing.T) {
	w := newWorld(t)
	m := w.newMaster(1, nil)
	if err := m.Start(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	infos := m.Workers()
	if len(infos) != 3 {
		t.Fatalf("%d workers, want 3", len(infos))
	}
	slices.SortFunc(infos, func(a, b Info) int { return a.Slot - b.Slot })
	for slot, i := range infos {
		if i.Slot != slot || i.Generation != 1 || i.State != Ready || i.Reason != "epoll" || i.Role != "" || i.Told {
			t.Errorf("worker in slot %d: %+v", slot, i)
		}
		if !slices.Equal(i.Lanes, []string{fmt.Sprintf("http.%d", slot)}) || !slices.Equal(i.Inodes, []uint64{uint64(100 + slot)}) {
			t.Errorf("worker in slot %d has lanes %v, inodes %v", slot, i.Lanes, i.Inodes)
		}
		if n := w.count("admit", i.PID); n != 1 {
			t.Errorf("worker %d was admitted %d times", i.PID, n)
		}
	}
	select {
	case <-m.Empty():
		t.Error("a pool with workers says that it is empty")
	default:
	}
	m.end()
	<-m.Empty()
	w.verify()
}

func TestPool_StartFailures(t *testing.T) {
	type failure struct {
		name    string
		config  func(*Config)
		script  func(p *program) error // for slot 1; the other workers never are ready
		gate    func(*fakeGate)
		want    []string // parts of the error
		is      error
		started bool // a *StartError
	}
	blind := errors.New("permission denied")
	for _, tc := range []failure{
		{name: "exits at once", want: []string{"worker 1 (pid ", "ended before it was ready: exit status 3"}, started: true,
			script: func(p *program) error { p.exit(exited3); return nil }},
		{name: "is killed", want: []string{"ended before it was ready: signal: segmentation fault"}, started: true,
			script: func(p *program) error {
				p.exit(pidfd.Status{Known: true, Signal: syscall.SIGSEGV})
				return nil
			}},
		{name: "cannot be spawned", want: []string{"start worker 1: ", "file does not exist"}, is: os.ErrNotExist,
			script: func(*program) error { return fmt.Errorf("execute: %w", os.ErrNotExist) }},
		{name: "is never ready", want: []string{"worker 1 (pid ", "not ready in time", "starting after 30ms", "--ready", "{fd}"}, is: ErrNotReady, started: true,
			config: func(c *Config) { c.StartTimeout = 30 * time.Millisecond },
			script: func(*program) error { return nil }},
		{name: "listens elsewhere", want: []string{"not ready in time", "worker 1 listens on 127.0.0.1:9000, [::1]:9000 itself and not on the socket that it inherited", "{fd}"}, is: ErrNotReady, started: true,
			config: func(c *Config) { c.StartTimeout = 30 * time.Millisecond },
			script: func(p *program) error { p.elsewhere = []string{"127.0.0.1:9000", "[::1]:9000"}; return nil }},
		{name: "cannot be seen", want: []string{"readiness cannot be seen", "permission denied", "--ready"}, is: ErrNoEvidence, started: true,
			script: func(p *program) error { p.blind = blind; return nil }},
		{name: "is not admitted", want: []string{"give it new connections", "the kernel said no"}, started: true,
			gate:   func(g *fakeGate) { g.admit = func(Info) error { return errors.New("the kernel said no") } },
			script: func(p *program) error { p.serving = true; return nil }},
		{name: "gets no socket", want: []string{"start worker 1: no lane left"},
			gate: func(g *fakeGate) {
				g.sockets = func(slot int) ([]Socket, error) {
					if slot == 1 {
						return nil, errors.New("no lane left")
					}
					return nil, nil
				}
			}},
		{name: "cannot be prepared", want: []string{"start worker 1: no --listen is called x"},
			config: func(c *Config) {
				launch := c.Launch
				c.Launch = func(slot int, s []Socket) (Launch, error) {
					if slot == 1 {
						return Launch{}, errors.New("no --listen is called x")
					}
					return launch(slot, s)
				}
			}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.script = func(p *program) error {
				if p.slot == 1 && tc.script != nil {
					return tc.script(p)
				}
				return nil
			}
			m := w.newMaster(1, func(c *Config) {
				c.StartTimeout = 0 // the others wait for ever
				if tc.config != nil {
					tc.config(c)
				}
			})
			if tc.gate != nil {
				tc.gate(m.gate)
			}
			n := 3
			if tc.is == ErrNotReady { //nolint:errorlint // the others would fail likewise
				n = 2
				w.script = func(p *program) error {
					if p.serving = p.slot != 1; p.serving {
						return nil
					}
					return tc.script(p)
				}
			}
			err := m.Start(t.Context(), n)
			if err == nil {
				t.Fatal("it started")
			}
			for _, part := range tc.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q lacks %q", err, part)
				}
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("%v is no %v", err, tc.is)
			}
			var se *StartError
			if errors.As(err, &se) != tc.started {
				t.Errorf("%v is a *StartError: %v", err, !tc.started)
			}
			if se != nil && (se.Worker.Slot != 1 || se.Worker.Generation != 1 || se.Worker.PID == 0) {
				t.Errorf("the error names worker %+v", se.Worker)
			}
			m.end()
			w.verify()
			if ends := w.count("release", 0); ends < w.count("spawn", 0) {
				t.Errorf("the gate was told of %d ends", ends)
			}
		})
	}
}

func TestPool_StartReportsWhatTheWorkerPrintedLast(t *testing.T) {
	w := newWorld(t)
	w.script = func(p *program) error {
		if _, err := p.launch.Stdout.WriteString("importing\nImportError: no module named app\n"); err != nil {
			return err
		}
		p.exit(exited3)
		return nil
	}
	m := w.newMaster(1, func(c *Config) { c.Readiness = mustReadiness(t, "log=started") })
	err := m.Start(t.Context(), 1)
	var se *StartError
	if !errors.As(err, &se) {
		t.Fatalf("got %v", err)
	}
	if want := []string{"importing", "ImportError: no module named app"}; !slices.Equal(se.Tail, want) {
		t.Errorf("tail %q, want %q", se.Tail, want)
	}
	if se.Status != exited3 {
		t.Errorf("status %v", se.Status)
	}
	m.end()
	w.verify()
}

// The pipes of a worker that never began are closed with it, lest every attempt to restart it costs two more descriptors.
func TestPool_AFailedStartClosesItsPipes(t *testing.T) {
	w := newWorld(t)
	var stdout *os.File
	w.script = func(p *program) (err error) {
		if stdout, err = packet.Dup(p.launch.Stdout, "worker's end"); err != nil {
			return err
		}
		return syscall.ENOENT
	}
	m := w.newMaster(1, func(c *Config) { c.Prefix = true })
	if err := m.Start(t.Context(), 1); !errors.Is(err, syscall.ENOENT) {
		t.Fatalf("got %v", err)
	}
	defer stdout.Close()
	if _, err := stdout.WriteString("hello"); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("somebody still has the pipe open: %v", err)
	}
	m.end()
	w.verify()
}

func mustReadiness(t *testing.T, text string) Readiness {
	t.Helper()
	r, err := ParseReadiness(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// sayReady says over the channel that the worker serves, and wants its orders there.
func sayReady(t *testing.T, p *program) {
	if err := p.ch.Send(channel.Ready{Version: channel.Version, PID: p.pid, Drain: true, Handoff: true}, nil); err != nil {
		t.Error(err)
	}
}

// askFunc is an Asker.
type askFunc func(ctx context.Context, w Info, path string) error

func (f askFunc) Ask(ctx context.Context, w Info, path string) error { return f(ctx, w, path) }

func TestPool_ReadinessModes(t *testing.T) {
	for _, tc := range []struct {
		name   string
		mode   string
		script func(t *testing.T, p *program) // what the worker does in the end; it runs unlocked
		reason string
	}{
		{name: "auto by the kernel", mode: "auto", reason: "epoll", script: func(_ *testing.T, p *program) { p.serve() }},
		{name: "auto by notify", mode: "auto", reason: "it said so", script: func(_ *testing.T, p *program) { p.notify("READY=1\nSTATUS=up") }},
		{name: "auto by channel", mode: "auto", reason: "it said so", script: sayReady},
		{name: "notify by notify", mode: "notify", reason: "it said so", script: func(_ *testing.T, p *program) {
			p.serve() // does not count
			p.notify("STATUS=loading")
			p.notify("READY=0")
			p.notify("READY=1")
		}},
		{name: "notify by channel", mode: "notify", reason: "it said so", script: sayReady},
		{name: "log", mode: "log=^up$", reason: "it said so", script: func(t *testing.T, p *program) {
			p.serve() // does not count, nor does this:
			p.notify("READY=1")
			if _, err := p.stdout.WriteString("coming up\nup\n"); err != nil {
				t.Error(err)
			}
		}},
		{name: "delay", mode: "delay=20ms", reason: "its delay is over", script: func(_ *testing.T, p *program) { p.notify("READY=1") }},
		{name: "http", mode: "http=/up", reason: "it answers /up", script: func(_ *testing.T, p *program) {
			p.notify("READY=1") // does not count
			p.serve()
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.script = func(p *program) error {
				if p.launch.Stdout != nil {
					var err error
					p.stdout, err = packet.Dup(p.launch.Stdout, "stdout")
					p.ended = func(p *program) { p.stdout.Close() }
					return err
				}
				return p.speak()
			}
			began := time.Now()
			m := w.newMaster(1, func(c *Config) {
				c.Readiness = mustReadiness(t, tc.mode)
				c.Owns = func(_, sender int) bool { return sender == os.Getpid() }
				c.Asker = askFunc(func(ctx context.Context, i Info, path string) error {
					if _, ok := ctx.Deadline(); !ok || path != "/up" {
						t.Errorf("asked for %s with %v", path, ctx)
					}
					w.mu.Lock()
					defer w.mu.Unlock()
					if !w.programs[i.PID].serving {
						return errors.New("503 Service Unavailable")
					}
					return nil
				})
			})
			result := make(chan error, 1)
			go func() { result <- m.Start(t.Context(), 1) }()
			w.awaitEntry("state starting", 0, 0)
			tc.script(t, w.alive()[0])
			if err := <-result; err != nil {
				t.Fatal(err)
			}
			if i := m.Workers()[0]; i.State != Ready || i.Reason != tc.reason {
				t.Errorf("it is %s: %s; want ready: %s", i.State, i.Reason, tc.reason)
			}
			if d := m.cfg.Readiness.Delay; time.Since(began) < d {
				t.Errorf("ready after %v, before its delay of %v", time.Since(began), d)
			}
			m.end()
			w.verify()
		})
	}
}

func TestPool_IgnoresStrangersOnTheNotifySocket(t *testing.T) {
	w := newWorld(t)
	w.script = func(*program) error { return nil }
	asked := make(chan [2]int, 1)
	m := w.newMaster(1, func(c *Config) {
		c.Readiness.Mode = ReadyNotify
		c.Owns = func(worker, sender int) bool { asked <- [2]int{worker, sender}; return false }
	})
	result := make(chan error, 1)
	go func() { result <- m.Start(t.Context(), 1) }()
	w.awaitEntry("state starting", 0, 0)
	p := w.alive()[0]
	p.notify("READY=1")
	if got := <-asked; got != [2]int{p.pid, os.Getpid()} {
		t.Errorf("asked whether %v belong together", got)
	}
	p.die(exited3)
	if err := <-result; err == nil {
		t.Error("a stranger made the worker ready")
	}
	m.end()
	w.verify()
	if n := m.logs.FilterMessage("notify message from a stranger ignored").Len(); n != 1 {
		t.Errorf("%d warnings, want 1", n)
	}
}

func TestPool_StartEndsWithItsContext(t *testing.T) {
	w := newWorld(t)
	w.script = func(*program) error { return nil }
	m := w.newMaster(1, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the upgrade was called off")
	result := make(chan error, 1)
	go func() { result <- m.Start(ctx, 2) }()
	w.awaitEntry("spawn", 0, 1)
	cancel(why)
	if err := <-result; !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
	m.end()
	w.verify()
	if err := m.StartHelper("relay", Launch{}); !errors.Is(err, ErrFrozen) {
		t.Errorf("an ended pool starts a helper: %v", err)
	}
}

func TestPool_NotReadyExactlyAtTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.bubble = true
		w.script = func(*program) error { return nil }
		m := w.newMaster(1, nil)
		began := time.Now()
		err := m.Start(t.Context(), 1)
		if !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "starting after 1m0s") {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took != DefaultStartTimeout {
			t.Errorf("after %v, want %v", took, DefaultStartTimeout)
		}
		m.end()
		w.verify()
	})
}

// Of workers that listen at an address of their own all but one end, and it is the one that explains why.
func TestPool_StartWhereAnotherListensElsewhere(t *testing.T) {
	w := newWorld(t)
	w.script = func(p *program) error {
		if p.slot == 0 {
			p.elsewhere = []string{"127.0.0.1:9000"}
		}
		return nil
	}
	m := w.newMaster(1, nil)
	result := make(chan error, 1)
	go func() { result <- m.Start(t.Context(), 2) }()
	testwait.Until(t, "there are two workers", func() bool { return len(m.Workers()) >= 2 })
	w.mu.Lock()
	for _, p := range w.programs {
		if p.slot == 1 {
			p.exit(exited3)
		}
	}
	w.mu.Unlock()
	err := <-result
	if want := "exit status 3: worker 0 listens on 127.0.0.1:9000 itself and not on the socket"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q in it", err, want)
	}
	if e := (*StartError)(nil); !errors.As(err, &e) || e.Worker.Slot != 1 {
		t.Errorf("%v does not name the worker that ended", err)
	}
	m.end()
	w.verify()
}
