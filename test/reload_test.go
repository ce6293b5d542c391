//go:build linux

package test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gapless/internal/control"
)

// Reloads under load: no request is lost, and of the built-in app no connection is closed.
func TestReload_UnderLoadLosesNothing(t *testing.T) {
	for _, accept := range []string{"steered", "shared"} {
		for _, surge := range []string{"1", "3"} {
			t.Run(accept+" surge "+surge, func(t *testing.T) {
				s := start(t, options{flags: []string{"-w", "3", "--accept", accept, "--surge", surge}})
				p := plan{addr: s.addr, streams: postStreams("/echo", requestsPerSecond()/2), rtt: 5 * time.Millisecond, every: slower(300 * time.Millisecond), tail: slower(time.Second)}
				n := counted(3, 15)
				r := p.under(t, n, func(i int) {
					v := s.verb("reload").demand(t, 0)
					if want := fmt.Sprintf("revision %d", i+2); !strings.Contains(v.stdout, want) {
						t.Errorf("the answer is %q, want %s", v.stdout, want)
					}
				})
				r.untouched(t, p)
				r.answered(t, 1)
				s.settled(1, 3)
				st := s.status()
				s.truth(st)
				if g := st.Generations[0]; g.Revision != n+1 || g.Generation != 1 {
					t.Errorf("now %d.%d serves", g.Generation, g.Revision)
				}
				s.stop()
			})
		}
	}
}

// A server that knows nothing of gapless loses no request by a reload, and closes idle connections only as it does itself.
func TestReload_ForeignServer(t *testing.T) {
	t.Parallel()
	for _, accept := range []string{"steered", "shared"} {
		t.Run(accept, func(t *testing.T) {
			s := start(t, options{flags: []string{"-w", "2", "--accept", accept}, command: role("shutdown")})
			p := plan{addr: s.addr, streams: postStreams("/", requestsPerSecond()/5)[1:], every: slower(300 * time.Millisecond), tail: slower(500 * time.Millisecond)}
			r := p.under(t, counted(2, 10), func(int) { s.verb("reload").demand(t, 0) })
			r.noneLost(t)
			s.settled(1, 2)
			s.stop()
		})
	}
}

// A reload with a release that does not start stops, says why, and leaves what serves; the next one with a good release
// takes.
func TestReload_BrokenReleaseLeavesWhatServes(t *testing.T) {
	for _, accept := range []string{"steered", "shared"} {
		for _, broken := range []struct {
			name   string
			make   func(a *app)
			reason string
		}{
			{"exits", func(a *app) { a.role("exits-3") }, "exit status 3"},
			{"is never ready", func(a *app) { a.role("never-ready") }, "ready"},
			{"is missing", func(a *app) { a.becomes("/nonexistent/program") }, ""},
		} {
			t.Run(accept+" "+broken.name, func(t *testing.T) {
				t.Parallel()
				a := newApp(t)
				s := start(t, options{command: []string{a.path}, flags: []string{"--accept", accept, "--start-timeout", "3s"}})
				before := s.tree()
				p := plan{addr: s.addr, streams: postStreams("/echo", requestsPerSecond()/2), every: slower(400 * time.Millisecond), tail: slower(400 * time.Millisecond)}
				broken.make(a)
				r := p.under(t, 1, func(int) {
					v := s.verb("reload").demand(t, 1)
					if !strings.Contains(v.stderr, broken.reason) {
						t.Errorf("the complaint is %q, want %q in it", v.stderr, broken.reason)
					}
				})
				r.untouched(t, p)
				s.settled(1, 2)
				if now := s.tree(); !slices.Equal(pids(now), pids(before)) {
					t.Errorf("the processes were\n%sand are\n%s", list(before), list(now))
				}
				st := s.status()
				s.truth(st)
				if g := st.Generations[0]; g.Revision != 1 || st.State != control.StateServing {
					t.Errorf("after the failed reload it is %s, revision %d", st.State, g.Revision)
				}
				// A worker that is restarted is still of the release that serves.
				s.restartWorker(1, 1)
				a.good()
				s.verb("reload").demand(t, 0)
				s.settled(1, 2)
				s.stop()
			})
		}
	}
}

// A reload reads the configuration file and the env-files again, and follows links; the revision rises.
func TestReload_ReadsAgain(t *testing.T) {
	t.Parallel()
	dir := publicDir(t)
	config, one, two := filepath.Join(dir, "gapless.yaml"), filepath.Join(dir, "one.env"), filepath.Join(dir, "two.env")
	writeTo(t, one, "E2E_SETTING=first\nE2E_ONE=yes\n")
	writeTo(t, two, "E2E_SETTING=third\n")
	writeTo(t, config, "env-file: ["+one+"]\n")
	s := start(t, options{flags: []string{"--config", config}, command: role("environment")})
	demand := func(generation, revision int, want ...string) {
		t.Helper()
		want = append(want, fmt.Sprintf("GAPLESS_GENERATION=%d", generation), fmt.Sprintf("GAPLESS_REVISION=%d", revision))
		for range 6 {
			var v view
			s.get("/").into(&v)
			for _, kv := range want {
				if !slices.Contains(v.Environ, kv) {
					t.Errorf("%s is missing", kv)
				}
			}
		}
	}
	demand(1, 1, "E2E_SETTING=first", "E2E_ONE=yes")

	writeTo(t, one, "E2E_SETTING=second\nE2E_ONE=yes\n")
	s.restartWorker(1, 0)
	demand(1, 1, "E2E_SETTING=first") // pinned
	s.verb("reload").demand(t, 0)
	s.settled(1, 2)
	demand(1, 2, "E2E_SETTING=second")

	writeTo(t, config, "env-file: ["+one+", "+two+"]\n")
	s.signal(syscall.SIGHUP)
	s.becomes("reloaded", func(st control.Status) bool {
		return st.State == control.StateServing && st.Generations[0].Revision == 3 && len(st.Generations[0].Workers) == 2
	})
	demand(1, 3, "E2E_SETTING=third", "E2E_ONE=yes")

	for name, text := range map[string]string{
		"a key that does not exist": "env-file: [" + one + "]\nnonsense: 1\n",
		"no YAML":                   "env-file: [",
		"a file that is missing":    "env-file: [" + filepath.Join(dir, "missing.env") + "]\n",
	} {
		writeTo(t, config, text)
		for _, verb := range []string{"reload", "upgrade"} {
			if v := s.verb(verb).demand(t, 1); !strings.Contains(v.stderr, filepath.Dir(config)) {
				t.Errorf("%s: %s complains %q, and does not name the file", name, verb, v.stderr)
			}
			s.becomes("serving", func(st control.Status) bool { return st.State == control.StateServing })
		}
	}
	demand(1, 3, "E2E_SETTING=third")
	writeTo(t, config, "env-file: ["+one+"]\n")
	s.verb("reload").demand(t, 0)
	s.settled(1, 2)
	demand(1, 4, "E2E_SETTING=second")
	s.stop()
}

func TestReload_FollowsLinks(t *testing.T) {
	t.Parallel()
	current, moveTo := releases(t)
	s := start(t, options{flags: []string{"--chdir", current}, command: []string{"./serve"}})
	moveTo("two")
	s.verb("reload").demand(t, 0)
	s.settled(1, 2)
	for range 6 {
		if r := s.get("/").generation(1); !strings.Contains(r.body, "/two release two\n") {
			t.Errorf("answer %q", r.body)
		}
	}
	if dir := s.status().Generations[0].ReleaseDir; filepath.Base(dir) != "two" {
		t.Errorf("the status names %s", dir)
	}
	s.restartWorker(1, 0)
	moveTo("one")
	s.restartWorker(1, 1)
	for range 6 {
		if r := s.get("/"); !strings.Contains(r.body, "/two release two\n") {
			t.Errorf("answer %q", r.body)
		}
	}
	s.stop()
}

// HUP during an upgrade, and USR2 during a reload, are done when what is under way is over: both happen.
func TestReload_AndUpgradeTogether(t *testing.T) {
	for _, tt := range []struct {
		name          string
		first, second syscall.Signal
		revision      int
	}{
		{"HUP during an upgrade", syscall.SIGUSR2, syscall.SIGHUP, 2},
		{"USR2 during a reload", syscall.SIGHUP, syscall.SIGUSR2, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := start(t, options{flags: []string{"--before-start", "test $GAPLESS_GENERATION$GAPLESS_REVISION = 11 || sleep 0.6"}})
			s.signal(tt.first)
			s.becomes("the first is under way", func(st control.Status) bool {
				return st.State == control.StateUpgrading || st.State == control.StateReloading
			})
			s.signal(tt.second)
			s.becomes("both have happened", func(st control.Status) bool {
				return st.State == control.StateServing && len(st.Generations) == 1 && st.Generations[0].Generation == 2 &&
					st.Generations[0].Revision == tt.revision && len(own(st)) == 2
			})
			s.settled(2, 2)
			if tt.first == syscall.SIGHUP && len(s.out.find(msg("The reload is complete"))) != 1 {
				t.Error("the reload was lost")
			}
			s.stop()
		})
	}
}

// The number of workers changes under load, and nobody notices.
func TestScale_UnderLoad(t *testing.T) {
	s := start(t, options{flags: []string{"-w", "1"}})
	p := plan{addr: s.addr, streams: postStreams("/echo", requestsPerSecond()/2), rtt: 5 * time.Millisecond, every: slower(500 * time.Millisecond), tail: slower(time.Second)}
	steps := []int{8, 2}
	if soak {
		steps = []int{8, 2, 1, 4, 8, 3, 2}
	}
	r := p.under(t, len(steps), func(i int) { s.verb("scale", fmt.Sprint(steps[i])).demand(t, 0) })
	r.untouched(t, p)
	s.settled(1, 2)
	s.truth(s.status())
	s.stop()
}

// TTIN and TTOU change the number by one, at least one stays, and the number survives upgrades and reloads.
func TestScale_TheNumberSurvives(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"-w", "1"}})
	serves := func(generation, n int) {
		t.Helper()
		s.becomes(fmt.Sprintf("%d workers", n), func(st control.Status) bool {
			return st.State == control.StateServing && st.Workers == n && len(st.Generations) == 1 && inState(own(st), "ready") == n
		})
		s.settled(generation, n)
	}
	s.signal(syscall.SIGTTOU)
	serves(1, 1)
	for n := 2; n <= 3; n++ {
		s.signal(syscall.SIGTTIN)
		serves(1, n)
	}
	s.upgrade(2)
	serves(2, 3)
	s.signal(syscall.SIGTTOU)
	serves(2, 2)
	s.verb("scale", "5").demand(t, 0)
	serves(2, 5)
	s.verb("reload").demand(t, 0)
	serves(2, 5)
	s.verb("upgrade").demand(t, 0)
	serves(3, 5)
	s.verb("scale", "1").demand(t, 0)
	serves(3, 1)
	s.stop()
}

// More workers that cannot start leave those that serve, and the old number.
func TestScale_BrokenWorkers(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	gate := filepath.Join(t.TempDir(), "broken")
	a.becomes("/bin/sh -c 'test ! -e " + gate + " || exit 9; exec " + roleCommand("shutdown") + "'")
	s := start(t, options{command: []string{a.path}})
	writeTo(t, gate, "")
	if v := s.verb("scale", "4").demand(t, 1); !strings.Contains(v.stderr, "exit status 9") {
		t.Errorf("the complaint is %q", v.stderr)
	}
	s.settled(1, 2)
	st := s.becomes("serving", func(st control.Status) bool { return st.State == control.StateServing })
	if st.Workers != 2 {
		t.Errorf("%d workers are wanted after the failure", st.Workers)
	}
	s.get("/")
	s.stop()
}

// roleCommand is a role as a line for sh.
func roleCommand(name string, env ...string) string { return strings.Join(role(name, env...), " ") }

// pids are those of processes.
func pids(ps []proc) []int {
	var ids []int
	for _, p := range ps {
		ids = append(ids, p.PID)
	}
	slices.Sort(ids)
	return ids
}
