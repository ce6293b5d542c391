//go:build linux

package test

import (
	"math"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gapless/internal/control"
	"gapless/internal/load"
)

// shareOf returns how many of n new connections a generation gets.
func (s *server) shareOf(generation, n int) int {
	s.t.Helper()
	var count tally
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range (n - i + 7) / 8 {
				r, err := tryGet(s.t, s.addr, "/")
				if err != nil || r.status != http.StatusOK {
					s.t.Errorf("a new connection was lost: %v, status %d", err, r.status)
					continue
				}
				count.add(r.header.Get("X-Gapless-Generation"))
			}
		})
	}
	wg.Wait()
	return count.by[strconv.Itoa(generation)]
}

// gets demands that a generation gets its percentage of new connections, within five standard deviations.
func (s *server) gets(generation, percent int) {
	s.t.Helper()
	n := counted(200, 10_000)
	got, p := s.shareOf(generation, n), float64(percent)/100
	want, deviation := p*float64(n), math.Sqrt(p*(1-p)*float64(n))
	if math.Abs(float64(got)-want) > 5*deviation {
		s.t.Errorf("generation %d got %d of %d new connections, want %.0f ± %.0f", generation, got, n, want, 5*deviation)
	}
}

// staged demands what the status says of a generation beside the one in charge.
func (s *server) staged(generation int, state string, percent int) control.Status {
	s.t.Helper()
	st := s.status()
	if g := st.Staged; g == nil || g.Generation != generation || g.State != state || g.Percent != percent || g.Next == "" || st.State != control.StateStaged {
		s.t.Errorf("the status says %q of %+v, want generation %d %s with %d %%", st.State, st.Staged, generation, state, percent)
	}
	s.truth(st)
	return st
}

// stageLoad is a load during which generations are staged: kept-alive connections only where they can change generation.
func stageLoad(s *server, handoff bool) plan {
	p := plan{addr: s.addr, every: 0, tail: slower(500 * time.Millisecond)}
	if handoff {
		p.streams = postStreams("/echo", requestsPerSecond()/5)
	} else {
		p.streams = []load.Stream{{Kind: load.NewConn, Connections: 8, Rate: 60, Method: http.MethodPost, Path: "/", Body: 50}}
	}
	return p
}

// A release gets its share step by step, takes over, or goes back, and nobody notices: not a request lost, and of the
// built-in app not a connection closed.
func TestStage_UnderLoad(t *testing.T) {
	for _, tt := range []struct {
		name, program string
		flags         []string
	}{
		{"built-in app", "", nil},
		{"built-in app with shared lanes", "", []string{"--accept", "shared"}},
		{"uvicorn", "uvicorn", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := options{flags: append([]string{"-w", "2"}, tt.flags...), env: []string{"E2E_STARTUP=0"}}
			var s *server
			if tt.program == "" {
				s = start(t, o)
			} else {
				s = foreign(t, tt.program, o)
			}
			steps := []func(){
				func() { // step by step
					s.verb("upgrade", "--stage").demand(t, 0)
					s.staged(2, control.GenerationStaged, 0)
					s.gets(2, 0)
					s.verb("shift", "5").demand(t, 0)
					s.gets(2, 5)
					s.verb("shift", "50").demand(t, 0)
					s.staged(2, control.GenerationStaged, 50)
					s.gets(2, 50)
					s.verb("promote").demand(t, 0)
					s.gets(2, 100)
					s.settled(2, 2)
				},
				func() { // and back
					s.verb("upgrade", "--stage").demand(t, 0)
					s.verb("shift", "30").demand(t, 0)
					s.gets(3, 30)
					s.verb("abort").demand(t, 0)
					s.gets(3, 0)
					s.settled(2, 2)
				},
				func() { // everything, and back
					s.verb("upgrade", "--stage").demand(t, 0)
					s.verb("promote", "--keep", "1h").demand(t, 0)
					s.staged(4, control.GenerationWindow, 100)
					s.gets(4, 100)
					s.verb("rollback").demand(t, 0)
					s.gets(4, 0)
					s.settled(2, 2)
				},
				func() { // by itself
					s.verb("upgrade", "--stage", "--weights", "10,60", "--bake", "300ms", "--keep", "300ms", "--wait-drained").demand(t, 0)
					s.settled(5, 2)
					s.gets(5, 100)
				},
			}
			if len(tt.flags) > 0 && !soak {
				steps = steps[:2]
			}
			p := stageLoad(s, tt.program == "")
			r := p.under(t, len(steps), func(i int) { steps[i]() })
			if tt.program == "" {
				r.untouched(t, p)
			} else {
				r.noneLost(t)
			}
			s.truth(s.becomes("serving", func(st control.Status) bool { return st.State == control.StateServing && len(st.Generations) == 1 }))
			s.stop()
		})
	}
}

// A generation without a share is not reached by anybody.
func TestStage_WithoutAShareNobodyReachesIt(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"-w", "3"}})
	s.verb("upgrade", "--stage").demand(t, 0)
	if n := s.shareOf(2, counted(1500, 10_000)); n != 0 {
		t.Errorf("%d new connections reached a generation without a share", n)
	}
	s.verb("shift", "40").demand(t, 0)
	s.verb("shift", "0").demand(t, 0)
	if n := s.shareOf(2, counted(500, 10_000)); n != 0 {
		t.Errorf("%d new connections reached a generation whose share was taken back", n)
	}
	s.verb("abort").demand(t, 0)
	s.settled(1, 3)
	s.stop()
}

// Shares are right with different numbers of workers, and stay so when workers of either generation come and go.
func TestStage_SharesWithUnequalNumbersOfWorkers(t *testing.T) {
	t.Parallel()
	config := filepath.Join(publicDir(t), "gapless.yaml")
	writeTo(t, config, "workers: 4\n")
	s := start(t, options{flags: []string{"--config", config}, noCount: true})
	writeTo(t, config, "workers: 1\nkeep: 1h\n")
	s.verb("upgrade", "--stage").demand(t, 0)
	s.verb("shift", "20").demand(t, 0)
	s.gets(2, 20)
	victim := s.worker(1, 2)
	signal(t, victim.PID, syscall.SIGKILL)
	s.becomes("the killed worker is replaced", func(st control.Status) bool {
		return len(st.Generations) == 2 && inState(st.Generations[1].Workers, "ready") == 4
	})
	s.gets(2, 20)
	s.verb("promote").demand(t, 0)
	s.settled(2, 1)
	// The generation in charge says how long the one before it is kept.
	s.verb("upgrade").demand(t, 0)
	s.staged(3, control.GenerationWindow, 100)
	s.verb("promote").demand(t, 0)
	s.settled(3, 1)
	s.stop()
}

// Orders that make no sense now are refused with a reason, and change nothing.
func TestStage_OrdersOutOfSeason(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	refused := func(want string, verb string, args ...string) {
		t.Helper()
		if v := s.verb(verb, args...).demand(t, 1); !strings.Contains(v.stderr, want) || v.stdout != "" {
			t.Errorf("gapless %s says %q and %q, want %q", verb, v.stdout, v.stderr, want)
		}
	}
	for _, verb := range []string{"promote", "abort", "rollback"} {
		refused("nothing to", verb)
	}
	refused("nothing to", "shift", "10")
	s.verb("shift", "101").demand(t, 2)
	s.verb("upgrade", "--weights", "5").demand(t, 2)

	s.verb("upgrade", "--stage").demand(t, 0)
	refused("staged", "upgrade")
	refused("staged", "reload")
	refused("staged", "scale", "3")
	s.signal(syscall.SIGHUP) // is acted on when the stage is over
	s.verb("promote", "--keep", "1h").demand(t, 0)
	refused("all new connections", "shift", "10")
	refused("window", "reload")
	s.staged(2, control.GenerationWindow, 100)
	if v := s.verb("rollback").demand(t, 0); v.stdout != "generation 2 is aborted, and generation 1 serves on\n" || strings.Contains(v.stderr, "aborted") {
		t.Errorf("gapless rollback says %q and %q", v.stdout, v.stderr)
	}
	s.becomes("the reload that was asked for meanwhile", func(st control.Status) bool {
		return st.State == control.StateServing && len(st.Generations) == 1 && st.Generations[0].Revision == 2
	})

	walk := s.verbLater("upgrade", "--stage", "--weights", "50", "--bake", "1h")
	s.becomes("the walk has begun", func(st control.Status) bool { return st.Staged != nil && st.Staged.Percent == 50 })
	refused("by itself", "shift", "10")
	s.verb("abort").demand(t, 0)
	if v := walk.wait().demand(t, 1); !strings.Contains(v.stderr, "aborted by order") {
		t.Errorf("who began the walk is told %q", v.stderr)
	}
	for _, e := range s.out.find(msg("Upgrade aborted; this generation serves on")) {
		if e.Level != "info" {
			t.Errorf("that an order was followed is logged as %s: %s", e.Level, e.Reason)
		}
	}
	s.settled(1, 2)
	s.stop()
}

// A USR2 within the window ends it, and then upgrades; so does the verb.
func TestStage_UpgradeWithinTheWindow(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"--keep", "1h"}})
	s.signal(syscall.SIGUSR2)
	s.becomes("the window", func(st control.Status) bool {
		return st.Staged != nil && st.Staged.State == control.GenerationWindow && st.Staged.Percent == 100
	})
	s.signal(syscall.SIGUSR2)
	s.becomes("the next window", func(st control.Status) bool {
		return st.Staged != nil && st.Staged.Generation == 3 && st.Staged.Percent == 100 && len(st.Generations) == 2
	})
	s.verb("upgrade").demand(t, 0)
	st := s.becomes("the one after it", func(st control.Status) bool {
		return st.Staged != nil && st.Staged.Generation == 4 && len(st.Generations) == 2
	})
	if st.Generations[1].State != control.GenerationKept {
		t.Errorf("the generation in charge is %s", st.Generations[1].State)
	}
	s.verb("rollback").demand(t, 0)
	s.settled(3, 2)
	s.get("/").generation(3)
	s.stop()
}

// TERM ends everything in order in any phase, and what is in flight is answered by whichever generation has it.
func TestStage_StopsInOrder(t *testing.T) {
	for _, tt := range []struct {
		name string
		to   func(s *server)
	}{
		{"without a share", func(s *server) { s.verb("upgrade", "--stage").demand(s.t, 0) }},
		{"with a share", func(s *server) {
			s.verb("upgrade", "--stage").demand(s.t, 0)
			s.verb("shift", "50").demand(s.t, 0)
		}},
		{"in the window", func(s *server) { s.verb("upgrade", "--keep", "1h").demand(s.t, 0) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := start(t, options{})
			tt.to(s)
			var slow []*later
			for range 6 {
				slow = append(slow, s.ask("/slow?ms=800"))
			}
			for _, l := range slow {
				s.inFlight(l)
			}
			s.stop()
			for _, l := range slow {
				l.answer(t)
			}
		})
	}
}

// Where new connections cannot be divided, nothing is staged or kept, which is said in a sentence, and upgrades work.
func TestStage_RefusedWhereConnectionsCannotBeDivided(t *testing.T) {
	t.Parallel()
	path := filepath.Join(publicDir(t), "app.sock")
	s := prepare(t)
	s.addr = "unix:" + path
	s.run(options{flags: []string{"--listen", "unix:" + path}})
	s.await("the first workers are ready", msg("Application startup complete"))
	for _, args := range [][]string{{"--stage"}, {"--keep", "5s"}} {
		if v := s.verb("upgrade", args...).demand(t, 1); !strings.Contains(v.stderr, "unix") || strings.Count(v.stderr, "\n") != 1 || !strings.Contains(v.stderr, "works") {
			t.Errorf("%s is refused with %q", args[0], v.stderr)
		}
	}
	s.verb("upgrade", "--wait-drained").demand(t, 0)
	s.get("/").generation(2)
	s.stop()

	kept := prepare(t)
	kept.run(options{flags: []string{"--listen", "unix:" + path, "--keep", "5s"}})
	kept.exits(1)
	if text := kept.out.tail(t, 20); !strings.Contains(text, "--keep") || !strings.Contains(text, "leave --keep out") {
		t.Errorf("it does not say what is wrong and what to do:\n%s", text)
	}
}

// Staging and giving up again and again leaves nothing behind: no process, no descriptor.
func TestStage_ManyInARowLeaveNothing(t *testing.T) {
	s := start(t, options{})
	round := func() {
		s.verb("upgrade", "--stage").demand(t, 0)
		s.verb("shift", "50").demand(t, 0)
		s.get("/")
		s.verb("abort").demand(t, 0)
		s.settled(1, 2)
		s.verb("upgrade", "--keep", "1h").demand(t, 0)
		s.verb("rollback").demand(t, 0)
		s.settled(1, 2)
	}
	round()
	before := s.descriptors()
	for range counted(4, 50) {
		round()
	}
	const spare = 4 // lanes: how many are free at a time depends on chance
	if after := s.descriptors(); after.parent > before.parent+spare || after.master > before.master+spare {
		t.Errorf("%v, and later %v", before, after)
	}
	s.stop()
}
