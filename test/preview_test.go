//go:build linux

package test

import (
	"net"
	"strconv"
	"strings"
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
	eventually(t, patience, "the slow request is under way", func() bool {
		for _, w := range own(p.status()) {
			if w.Role == "" && w.Established > 0 {
				return true
			}
		}
		return false
	})
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
