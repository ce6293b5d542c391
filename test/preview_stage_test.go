//go:build linux

package test

import (
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"gapless/internal/control"
)

// closed demands that nobody listens at the preview address, and that status knows of none.
func (p previewed) closed() {
	p.t.Helper()
	if c, err := net.Dial("tcp", p.preview); err == nil {
		_ = c.Close()
		p.t.Errorf("somebody listens at %s", p.preview)
	}
	if got := p.status().Preview; got != nil {
		p.t.Errorf("the status says %+v", got)
	}
}

// An address that an upgrade asks for is there for what that one stages, and for nothing else.
func TestPreview_OfOneStage(t *testing.T) {
	t.Parallel()
	p := previewed{start(t, options{}), net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(t)))}
	stage := func(flags ...string) {
		t.Helper()
		p.verb("upgrade", append([]string{"--stage", "--preview", p.preview}, flags...)...).demand(t, 0)
	}
	p.closed()

	seen := p.dir + "/seen"
	stage("--verify", "echo $GAPLESS_PREVIEW_ADDR >>"+seen)
	if text, err := os.ReadFile(seen); err != nil || strings.TrimSpace(string(text)) != p.preview {
		t.Errorf("the verification was told %q (%v), want %s", text, err, p.preview)
	}
	p.shows(2)
	p.previews(200, 2)
	p.publics(500, 1)
	p.verb("abort").demand(t, 0)
	p.closed()

	stage()
	p.previews(20, 3)
	p.publics(20, 1)
	slow := p.askAt(p.preview, "/slow?ms=2000")
	p.underWay(3)
	p.verb("promote").demand(t, 0)
	p.closed()
	slow.answer(t).generation(3)

	// A window is part of it.
	stage("--keep", "10m")
	p.verb("promote").demand(t, 0)
	p.shows(4)
	p.previews(20, 4)
	p.verb("rollback").demand(t, 0)
	p.closed()

	// Nothing is begun with an address that is taken.
	taken, err := net.Listen("tcp", p.preview)
	if err != nil {
		t.Fatal(err)
	}
	refused := p.verb("upgrade", "--stage", "--preview", p.preview)
	refused.demand(t, 1)
	if want := "--preview " + p.preview + ": address already in use"; !strings.Contains(refused.stderr, want) {
		t.Errorf("it says %q, want %q", refused.stderr, want)
	}
	if st := p.status(); st.Staged != nil {
		t.Errorf("%+v is staged", st.Staged)
	}
	_ = taken.Close()
	p.verb("upgrade", "--stage", "--preview", "api="+p.preview).demand(t, 2)

	// Whichever master dies, the address goes with the stage.
	for _, generation := range []int{3, 0} {
		stage()
		st := p.status()
		if generation == 0 {
			generation = st.Staged.Generation
		}
		p.previews(5, st.Staged.Generation)
		for _, g := range st.Generations {
			if g.Generation == generation {
				signal(t, g.MasterPID, syscall.SIGKILL)
			}
		}
		p.becomes("the staged generation is gone", func(st control.Status) bool {
			return len(st.Generations) == 1 && st.Generations[0].Generation == 3 && st.State == control.StateServing
		})
		eventually(t, patience, "nobody listens at the preview address", func() bool {
			c, err := net.Dial("tcp", p.preview)
			if err == nil {
				_ = c.Close()
			}
			return err != nil
		})
		p.closed()
	}
	p.publics(20, 3)
	p.stop()
}

// Two preview addresses would be one too many.
func TestPreview_OfOneStageBesideThatOfRun(t *testing.T) {
	t.Parallel()
	p := startPreviewed(t, "", options{})
	refused := p.verb("upgrade", "--stage", "--preview", "127.0.0.1:0")
	refused.demand(t, 2)
	if want := "gapless run has --preview " + p.preview + " already"; !strings.Contains(refused.stderr, want) {
		t.Errorf("it says %q, want %q", refused.stderr, want)
	}
	p.previews(5, 1)
	p.stop()
}
