package workerpool

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"gapless/internal/channel"
)

// With an adapter in a worker its readiness is the adapter's to say, and the kernel's where the adapter is not heard of; and it
// is known which of the two it was.
func TestPool_Adapter(t *testing.T) {
	say := func(t *testing.T, p *program, ms ...channel.Message) {
		for _, m := range ms {
			if err := p.ch.Send(m, nil); err != nil {
				t.Error(err)
			}
		}
	}
	hello := channel.Hello{Version: channel.Version, PID: 1}
	for _, tt := range []struct {
		name    string
		given   Adapter
		script  func(t *testing.T, p *program)
		reason  string // why it is ready
		adapter string
		none    string // the beginning of why there is no adapter; "": nothing is told
	}{
		{"in force", Adapter{Name: "uvicorn", Expected: true}, func(t *testing.T, p *program) {
			say(t, p, channel.Adapter{Name: "uvicorn 1"}, hello)
			p.notify("READY=1") // as gunicorn, which does not know
			p.serve()           // does not count after hello
			sayReady(t, p)
		}, "it said so", "uvicorn 1", ""},
		{"refused", Adapter{Name: "uvicorn", Expected: true}, func(t *testing.T, p *program) {
			say(t, p, channel.Adapter{Name: "uvicorn 9", Reason: "unknown"})
			p.serve()
		}, "epoll", "", "unknown"},
		{"refused in the end", Adapter{Name: "uvicorn", Expected: true}, func(t *testing.T, p *program) {
			say(t, p, channel.Adapter{Name: "uvicorn 9"}, hello, channel.Adapter{Name: "uvicorn 9", Reason: "the event loop"})
			sayReady(t, p)
		}, "it said so", "", "the event loop"},
		{"not heard of", Adapter{Name: "uvicorn", Expected: true}, func(_ *testing.T, p *program) {
			p.notify("READY=1") // comes too early to be believed
			p.serve()
		}, "epoll", "", "the adapter was not loaded"},
		{"not heard of, where the kernel tells nothing", Adapter{Name: "uvicorn", Expected: true}, func(_ *testing.T, p *program) {
			p.w.mu.Lock()
			p.blind = errors.New("may not look")
			p.w.mu.Unlock()
			p.notify("READY=1")
		}, "it said so", "", "the adapter was not loaded"},
		{"not heard of, and not expected", Adapter{Name: "uvicorn"}, func(_ *testing.T, p *program) { p.notify("READY=1") }, "it said so", "", ""},
		{"too early, with an adapter that is not expected", Adapter{Name: "uvicorn"}, func(_ *testing.T, p *program) {
			p.notify("READY=1\nSTATUS=Gunicorn arbiter booted")
			p.serve()
		}, "epoll", "", ""},
		{"too early, and never seen to wait", Adapter{}, func(_ *testing.T, p *program) {
			p.notify("READY=1\nSTATUS=Gunicorn arbiter booted")
			p.w.mu.Lock()
			p.busy = true
			p.w.mu.Unlock()
		}, "it has taken a connection", "", ""},
		{"with another status", Adapter{}, func(_ *testing.T, p *program) { p.notify("READY=1\nSTATUS=Arbiter booted") }, "it said so", "", ""},
		{"turned off", Adapter{Reason: "--adapter off"}, func(_ *testing.T, p *program) { p.serve() }, "epoll", "", "--adapter off"},
		{"none is known", Adapter{}, func(_ *testing.T, p *program) { p.serve() }, "epoll", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.script = func(p *program) error { return p.speak() }
			m := w.newMaster(1, func(c *Config) {
				launch := c.Launch
				c.Launch = func(slot int, sockets []Socket) (Launch, error) {
					l, err := launch(slot, sockets)
					l.Adapter = tt.given
					return l, err
				}
				c.Owns = func(_, sender int) bool { return sender == os.Getpid() }
			})
			result := make(chan error, 1)
			go func() { result <- m.Start(t.Context(), 1) }()
			w.awaitEntry("state starting", 0, 0)
			tt.script(t, w.alive()[0])
			if err := <-result; err != nil {
				t.Fatal(err)
			}
			i := m.Workers()[0]
			if i.Reason != tt.reason || i.Adapter != tt.adapter || !strings.HasPrefix(i.NoAdapter, tt.none) || (i.NoAdapter == "") != (tt.none == "") {
				t.Errorf("ready because %q, with adapter %q, or none because %q", i.Reason, i.Adapter, i.NoAdapter)
			}
			m.end()
			w.verify()
		})
	}
}

// Whoever says READY=1 too early is shown as such, and is not believed either where the kernel tells nothing.
func TestPool_SaidTooEarly(t *testing.T) {
	w := newWorld(t)
	w.script = func(p *program) error { return p.speak() }
	m := w.newMaster(1, func(c *Config) { c.Owns = func(_, sender int) bool { return sender == os.Getpid() } })
	result := make(chan error, 1)
	go func() { result <- m.Start(t.Context(), 1) }()
	w.awaitEntry("state starting", 0, 0)
	p := w.alive()[0]
	p.notify("READY=1\nSTATUS=Gunicorn arbiter booted")
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(20 * time.Second); m.Workers()[0].Reason != saidTooEarly; {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("it is shown as %+v", m.Workers()[0])
		}
	}
	w.mu.Lock()
	p.blind = errors.New("may not look")
	w.mu.Unlock()
	if err := <-result; !errors.Is(err, ErrNoEvidence) {
		t.Errorf("got %v, want %v", err, ErrNoEvidence)
	}
	m.end()
	w.verify()
}
