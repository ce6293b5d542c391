//go:build linux

package test

import (
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"gapless/internal/control"
)

// previewed is a gapless with a preview address.
type previewed struct {
	*server
	preview string
}

func startPreviewed(t *testing.T, program string, o options) previewed {
	t.Helper()
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(t)))
	o.flags = append(o.flags, "--preview", addr)
	if program != "" {
		return previewed{foreign(t, program, o), addr}
	}
	return previewed{start(t, o), addr}
}

// previews demands that n connections to the preview address all reach one generation.
func (p previewed) previews(n, generation int) {
	p.t.Helper()
	for range n {
		get(p.t, p.preview, "/").generation(generation)
	}
}

// helpers are the processes of gapless that carry preview connections, as status tells.
func (p previewed) helpers() (n int) {
	for _, g := range p.status().Generations {
		for _, w := range g.Workers {
			if w.Role == "preview" {
				n++
			}
		}
	}
	return n
}

// alone waits until only one generation is left, with its workers all ready.
func (p previewed) alone(generation int) {
	p.t.Helper()
	p.becomes("one generation is left", func(st control.Status) bool {
		ready := 0
		for _, w := range own(st) {
			if w.Role == "" && w.State == "ready" {
				ready++
			}
		}
		return len(st.Generations) == 1 && st.Generations[0].Generation == generation && ready == st.Workers
	})
}

// askAt begins a request at some address.
func (s *server) askAt(addr, path string) *later {
	l := &later{done: make(chan struct{})}
	go func() {
		defer close(l.done)
		l.r, l.err = tryGet(s.t, addr, path)
	}()
	s.t.Cleanup(func() { <-l.done })
	return l
}

// While nothing is staged, a preview shows what serves, whoever is in charge by then; what is in flight over it outlives
// every change of master.
func TestPreview_ReachesTheActiveGeneration(t *testing.T) {
	t.Parallel()
	p := startPreviewed(t, "", options{})
	if n := p.helpers(); n != 0 {
		t.Errorf("%d relays before the first connection", n)
	}
	p.previews(counted(20, 200), 1)
	if n := p.helpers(); n != 1 {
		t.Errorf("%d relays, want 1", n)
	}
	var page struct{ Preview bool }
	get(t, p.preview, "/").into(&page)
	if !page.Preview {
		t.Error("the page does not say that it is a preview")
	}
	page.Preview = false
	if p.get("/").into(&page); page.Preview {
		t.Error("the public page says that it is a preview")
	}

	slow := p.askAt(p.preview, "/slow?ms=3000")
	p.underWay(1)
	p.upgrade(2)
	p.previews(counted(20, 200), 2)
	p.killMaster()
	p.previews(counted(20, 200), 2)
	p.upgrade(3)
	p.killMaster()
	p.previews(counted(20, 200), 3)
	slow.answer(t).generation(1)

	p.alone(3)
	p.stop()
	l, err := net.Listen("tcp", p.preview)
	if err != nil {
		t.Fatalf("after the end: %v", err)
	}
	_ = l.Close()
}

// An upgrade takes up what the settings say about the preview by then.
func TestPreview_FollowsTheSettings(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	first, second := net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(t))), net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(t)))
	config := s.dir + "/gapless.yaml"
	free := func(addr string) bool {
		l, err := net.Listen("tcp", addr)
		if err == nil {
			_ = l.Close()
		}
		return err == nil
	}
	writeFile(t, config, "preview: "+strconv.Quote(first)+"\n")
	s.run(options{flags: []string{"--config", config}})
	s.await("the first workers are ready", msg("Application startup complete"))
	get(t, first, "/").generation(1)

	writeFile(t, config, "preview: "+strconv.Quote(second)+"\n")
	s.upgrade(2)
	get(t, second, "/").generation(2)
	eventually(t, patience, "the first preview address is free", func() bool { return free(first) })

	// One that is taken is no reason to serve nobody.
	taken, err := net.Listen("tcp", first)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, config, "preview: "+strconv.Quote(first)+"\n")
	if e := s.refused(3); !strings.Contains(e.Reason, "--preview "+first+": address already in use") {
		t.Errorf("the reason is %q", e.Reason)
	}
	get(t, second, "/").generation(2)
	_ = taken.Close()

	writeFile(t, config, "workers: 2\n")
	s.upgrade(4)
	eventually(t, patience, "the second preview address is free", func() bool { return free(second) })
	s.stop()
}

// publics demands that n connections to the public address all reach one generation.
func (p previewed) publics(n, generation int) {
	p.t.Helper()
	for range n {
		p.get("/").generation(generation)
	}
}

// underWay waits until a request is in flight in a worker of a generation.
func (p previewed) underWay(generation int) {
	p.t.Helper()
	p.becomes("a request is in flight in the generation", func(st control.Status) bool {
		for _, g := range st.Generations {
			for _, w := range g.Workers {
				if g.Generation == generation && w.Role == "" && w.Established > 0 {
					return true
				}
			}
		}
		return false
	})
}

// A preview reaches the staged generation, whatever its share, and nothing else does while it has none.
func TestPreview_ReachesOnlyTheStaged(t *testing.T) {
	for _, tc := range []struct {
		name, program string
		flags         []string
	}{
		{"built-in", "", nil},
		{"shared", "", []string{"--accept", "shared"}},
		{"all addresses", "", nil},
		{"uvicorn", "uvicorn", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := options{flags: tc.flags, env: []string{"E2E_STARTUP=0"}}
			if tc.name != "all addresses" {
				onlyTheStaged(startPreviewed(t, tc.program, o))
				return
			}
			port := strconv.Itoa(freePort(t))
			o.flags = []string{"--listen", ":" + port}
			p := startPreviewed(t, tc.program, o)
			p.addr = "127.0.0.1:" + port
			onlyTheStaged(p)
		})
	}
}

// shows demands what the status says of the preview.
func (p previewed) shows(generation int) {
	p.t.Helper()
	if got := p.status().Preview; got == nil || got.URL != "http://"+p.preview || got.Address != "web" || got.Generation != generation {
		p.t.Errorf("the status says %+v, want generation %d", got, generation)
	}
}

func onlyTheStaged(p previewed) {
	p.t.Helper()
	p.shows(1)
	p.previews(5, 1)
	p.verb("upgrade", "--stage").demand(p.t, 0)
	p.shows(2)
	p.previews(counted(100, 1000), 2)
	p.publics(counted(200, 10000), 1)
	p.verb("shift", "50").demand(p.t, 0)
	p.previews(counted(50, 500), 2)
	p.verb("shift", "0").demand(p.t, 0)
	p.previews(counted(50, 500), 2)
	p.publics(counted(100, 5000), 1)
	p.verb("abort").demand(p.t, 0)
	p.shows(1)
	p.previews(counted(20, 200), 1)

	p.verb("upgrade", "--stage").demand(p.t, 0)
	p.previews(counted(50, 500), 3)
	p.verb("promote").demand(p.t, 0)
	p.previews(counted(20, 200), 3)
	p.upgrade(4)
	p.previews(counted(20, 200), 4)
	p.alone(4)
	p.stop()
}

// In the window both addresses reach the new generation, and after a rollback the old one.
func TestPreview_InTheWindow(t *testing.T) {
	t.Parallel()
	p := startPreviewed(t, "", options{})
	p.verb("upgrade", "--keep", "10m").demand(t, 0)
	p.shows(2)
	p.previews(counted(20, 200), 2)
	p.publics(counted(20, 200), 2)
	p.verb("rollback").demand(t, 0)
	p.shows(1)
	p.previews(counted(20, 200), 1)
	p.publics(counted(20, 200), 1)
	p.verb("upgrade", "--keep", "10m").demand(t, 0)
	p.verb("promote").demand(t, 0)
	p.previews(counted(20, 200), 3)
	p.alone(3)
	p.stop()
}

// What is in flight over the preview address outlives what becomes of the generation that it reached, unless that never had
// a share and is given up.
func TestPreview_InFlightOverStages(t *testing.T) {
	t.Parallel()
	p := startPreviewed(t, "", options{})
	active := p.askAt(p.preview, "/slow?ms=4000")
	p.underWay(1)
	p.verb("upgrade", "--stage").demand(t, 0)
	p.verb("abort").demand(t, 0)

	p.verb("upgrade", "--stage").demand(t, 0)
	p.verb("shift", "10").demand(t, 0)
	aborted := p.askAt(p.preview, "/slow?ms=2000")
	p.underWay(3)
	p.verb("abort").demand(t, 0)
	p.previews(5, 1)
	aborted.answer(t).generation(3)

	p.verb("upgrade", "--stage").demand(t, 0)
	promoted := p.askAt(p.preview, "/slow?ms=3000")
	p.underWay(4)
	p.verb("promote").demand(t, 0)
	p.killMaster()
	p.previews(5, 4)
	promoted.answer(t).generation(4)
	active.answer(t).generation(1)

	// The master in charge dies while a generation is staged: that goes, and previews show what serves.
	p.verb("upgrade", "--stage").demand(t, 0)
	p.previews(5, 5)
	serving := p.ask("/slow?ms=1000")
	for _, g := range p.status().Generations {
		if g.Generation == 4 {
			signal(t, g.MasterPID, syscall.SIGKILL)
		}
	}
	p.becomes("the staged generation is gone", func(st control.Status) bool {
		return len(st.Generations) == 1 && st.Generations[0].Generation == 4 && st.State == control.StateServing
	})
	p.previews(counted(20, 200), 4)
	serving.answer(t).generation(4)
	p.alone(4)
	p.stop()
}
