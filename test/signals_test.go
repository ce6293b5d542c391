//go:build linux

package test

import (
	"net/http"
	"syscall"
	"testing"
	"time"

	"gapless/internal/load"
)

// inFlight waits until a request has reached the server: there is a connection that has been accepted and read.
func (s *server) inFlight(l *later) {
	s.t.Helper()
	s.get("/") // of a queue that is served in order, this one comes later
	select {
	case <-l.done:
		s.t.Fatalf("the request was over too early: %v", l.err)
	default:
	}
}

// Upgrades follow each other at once, however long something drains.
func TestUpgrade_ThreeInARowWithARequestInFlight(t *testing.T) {
	t.Parallel()
	ms := "3000"
	if soak {
		ms = "10000"
	}
	s := start(t, options{})
	slow := s.ask("/slow?ms=" + ms)
	s.inFlight(slow)
	spacing := 200 * time.Millisecond
	if raceEnabled {
		spacing = 600 * time.Millisecond // an upgrade must be over: what comes during one is taken together
	}
	tick := time.NewTicker(spacing)
	defer tick.Stop()
	for range 3 {
		s.signal(syscall.SIGUSR2)
		<-tick.C
	}
	s.upgraded(4)
	s.get("/").generation(4)
	slow.answer(t).generation(1)
	s.settled(4, 2)
	s.stop()
}

// An upgrade that is asked for while one is under way is not forgotten, and several are one.
func TestUpgrade_AskedForDuringAnUpgrade(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"--before-start", "sleep 0.4"}})
	s.signal(syscall.SIGUSR2)
	s.await("the steps of generation 2", func(e event) bool { return e.Msg == "Running previous step" && e.Generation == 2 })
	for range 3 {
		s.signal(syscall.SIGUSR2)
	}
	s.upgraded(2)
	s.upgraded(3)
	s.settled(3, 2)
	s.stop()
	if more := s.out.find(completed(4)); len(more) > 0 {
		t.Error("three signals during one upgrade made more than one upgrade")
	}
}

// A hundred signals are no reason to lose anything.
func TestUpgrade_StormOfSignals(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGUSR2, syscall.SIGUSR1} {
		t.Run(sig.String(), func(t *testing.T) {
			s := start(t, options{})
			p := plan{addr: s.addr, streams: postStreams("/echo", requestsPerSecond()/4), tail: time.Second}
			p.every = 10 * time.Millisecond
			last := 0
			const storm = 100
			r := p.under(t, storm, func(i int) {
				s.signal(sig)
				if i == storm-1 {
					last = s.quiet()
				}
			})
			r.untouched(t, p)
			if sig == syscall.SIGUSR1 && last != 1 {
				t.Errorf("generation %d after USR1", last)
			}
			s.settled(last, 2)
			s.get("/").generation(last)
			s.stop()
		})
	}
}

// quiet waits until no upgrade is under way and none is pending, and returns the generation in charge.
func (s *server) quiet() int {
	s.t.Helper()
	last := 1
	for {
		begun := len(s.out.find(msg("Upgrade started")))
		s.await("the end of every upgrade that has begun", func(event) bool {
			return len(s.out.find(msg("Upgrade complete")))+len(s.out.find(func(e event) bool { return aborted(e.To)(e) })) >= begun
		})
		for _, e := range s.out.find(msg("Upgrade complete")) {
			last = max(last, e.Generation)
		}
		if !became(time.Second, func() bool { return len(s.out.find(msg("Upgrade started"))) > begun }) {
			return last
		}
	}
}

// Orders to stop are obeyed in every state.
func TestStop(t *testing.T) {
	slow := []string{"--before-start", "sleep 0.5"}
	tests := []struct {
		name  string
		flags []string
		act   func(s *server)
		lost  bool // the request in flight may be
	}{
		{name: "TERM drains", act: func(s *server) { s.signal(syscall.SIGTERM) }},
		{name: "INT drains", act: func(s *server) { s.signal(syscall.SIGINT) }},
		{name: "TERM twice ends at once", lost: true, act: func(s *server) {
			s.signal(syscall.SIGTERM)
			s.await("the drain has begun", msg("Shutting down"))
			s.signal(syscall.SIGTERM)
		}},
		{name: "QUIT ends at once", lost: true, act: func(s *server) { s.signal(syscall.SIGQUIT) }},
		{name: "TERM during an upgrade", flags: slow, act: func(s *server) {
			s.signal(syscall.SIGUSR2)
			s.await("generation 2 is starting", func(e event) bool { return e.Msg == "Running previous step" && e.Generation == 2 })
			s.signal(syscall.SIGTERM)
		}},
		{name: "TERM right after USR2", act: func(s *server) {
			s.signal(syscall.SIGUSR2)
			s.signal(syscall.SIGTERM)
		}},
		{name: "USR2 while everything drains", act: func(s *server) {
			s.signal(syscall.SIGTERM)
			s.await("the drain has begun", msg("Shutting down"))
			s.signal(syscall.SIGUSR2)
		}},
		{name: "QUIT during an upgrade", flags: slow, lost: true, act: func(s *server) {
			s.signal(syscall.SIGUSR2)
			s.await("generation 2 is starting", func(e event) bool { return e.Msg == "Running previous step" && e.Generation == 2 })
			s.signal(syscall.SIGQUIT)
		}},
		{name: "TERM after an upgrade that still drains", act: func(s *server) {
			s.upgrade(2)
			s.signal(syscall.SIGTERM)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := start(t, options{flags: tt.flags})
			slow := s.ask("/slow?ms=1500")
			s.inFlight(slow)
			began := time.Now()
			tt.act(s)
			s.exits(0)
			if took := time.Since(began); tt.lost && took > slower(1200*time.Millisecond) {
				t.Errorf("it took %v to end at once", took)
			}
			if !tt.lost {
				if r := slow.answer(t); r.status != http.StatusOK {
					t.Errorf("status %d", r.status)
				}
			}
		})
	}
}

// A stop that comes before the first workers are ready leaves nothing.
func TestStop_BeforeTheFirstWorkersAreReady(t *testing.T) {
	t.Parallel()
	s := launch(t, options{command: role("never-ready")})
	eventually(t, patience, "the workers have been started", func() bool { return len(s.workers(1)) == 2 })
	s.signal(syscall.SIGTERM)
	s.exits(0)
}

// Connections are drained, not dropped, when everything stops.
func TestStop_UnderLoadLosesNoRequest(t *testing.T) {
	s := start(t, options{flags: []string{"-w", "4"}})
	stream := load.Stream{Kind: load.KeepAlive, Connections: 16, Rate: 160, Method: http.MethodPost, Path: "/echo", Body: 100, Echo: true}
	p := plan{addr: s.addr, streams: []load.Stream{stream}, every: slower(800 * time.Millisecond), tail: 500 * time.Millisecond, rtt: 10 * time.Millisecond}
	r := p.under(t, 1, func(int) { s.signal(syscall.SIGTERM) })
	s.exits(0)
	// Nobody listens any more: new connections are refused, and one that arrives at the very moment is reset, which no
	// server can prevent. On those that were open nothing may be lost.
	described := 0
	for _, f := range r[0].Failures {
		if f.Class == load.Refused {
			continue
		}
		if described++; f.Served > 0 {
			t.Errorf("%s %s: %v", f.Class, f.ID, f.Err)
		}
	}
	if n := r.lost() - r[0].Drops[load.Refused]; n > described { // a report describes the first hundred
		t.Errorf("only %d of %d failures are described\n%s", described, n, r)
	}
}
