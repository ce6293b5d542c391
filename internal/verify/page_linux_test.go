package verify

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// render writes a report as a page, lets a real browser build it, and returns what the browser made of it.
func render(t *testing.T, r *Report, flags ...string) string {
	t.Helper()
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("chromium IS NOT INSTALLED, so the page has been looked at by nobody: run `make test-deps`")
	}
	// Not t.TempDir: what the browser leaves running for a moment still writes there.
	dir, err := os.MkdirTemp("", "gapless-page-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	page := filepath.Join(dir, "page.html")
	f, err := os.Create(page)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.WriteHTML(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, browser, append(append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
		"--disable-sync", "--enable-logging=stderr", "--user-data-dir=" + filepath.Join(dir, "profile"),
	}, flags...), "file://"+page)...)
	ownGroup(cmd)
	cmd.WaitDelay = 10 * time.Second
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	for line := range strings.Lines(stderr.String()) {
		if strings.Contains(line, "CONSOLE") { // what a browser complains about on a page
			t.Errorf("the browser says %s", line)
		}
	}
	return string(out)
}

func TestWriteHTML_InABrowser(t *testing.T) {
	r := sampleReport()
	r.Judge(Limits{Closed: -1})
	dom := render(t, &r, "--dump-dom")
	counts := []struct {
		what string
		n    int
	}{
		{`<h1 id="verdict" class="bad">FAILED</h1>`, 1},
		{`class="drop"`, 2}, {`class="closed"`, 2}, {`class="act"`, 1}, {`class="act failed"`, 1}, {`class="act fault"`, 1},
		{`<dd id="drops" class="bad">4</dd>`, 1}, {`<dd id="closed" class="warn">7</dd>`, 1}, {`<dd id="own">3 + 5 idle</dd>`, 1},
		{"3 dropped", 1}, // in what is shown at the place itself
		{"./server &lt;fd&gt;", 1}, {"&lt;unexpected&gt; EOF", 1}, {"kill-worker 3", 2},
		{"<script", 0}, {"http://", 0}, {"https://", 0}, {"NaN", 0}, {"ZgotmplZ", 0},
	}
	for _, c := range counts {
		got := strings.Count(dom, c.what)
		if c.n == 0 && got > 0 || c.n > 0 && got < c.n {
			t.Errorf("%q is there %d times, want %d", c.what, got, c.n)
		}
	}
	if strings.Count(dom, "<path") != 3 || strings.Contains(dom, `class="p99" d=""`) {
		t.Error("the curves are missing")
	}
	if t.Failed() {
		t.Log(dom)
	}
}

// Nothing to draw is no reason for a broken page.
func TestWriteHTML_Empty(t *testing.T) {
	for _, r := range []Report{{}, {Timeline: []Bucket{{}}, Width: 0.05}, {Timeline: []Bucket{{Count: 1, P50: 1e-9, P99: 1e-9, Max: 1e-9}}}} {
		r.Judge(Limits{})
		var b strings.Builder
		if err := r.WriteHTML(&b); err != nil || strings.Contains(b.String(), "NaN") || strings.Contains(b.String(), "Inf") {
			t.Errorf("%v\n%s", err, b.String())
		}
	}
}
