package lifecycle

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

func TestParseProbe(t *testing.T) {
	for _, tc := range []struct {
		text string
		want probe
		err  string
	}{
		{"/healthz", probe{"/healthz", 0}, ""},
		{"/healthz=204", probe{"/healthz", 204}, ""},
		{"/?a=b", probe{"/?a=b", 0}, ""},
		{"/?ms=60000", probe{"/?ms=60000", 0}, ""},
		{"/?a=b=200", probe{"/?a=b", 200}, ""},
		{"/=200", probe{"/", 200}, ""},
		{"healthz", probe{}, "is no path; write, for example, /healthz"},
		{"", probe{}, "is no path"},
		{"=200", probe{}, "is no path"},
		{"/a b", probe{}, "is no path"},
		{"/a\r\nX: y", probe{}, "is no path"},
		{"/a=999", probe{}, "999 is no status of an answer"},
		{"/a=100", probe{}, "100 is no status"},
	} {
		t.Run(tc.text, func(t *testing.T) {
			got, err := parseProbe(tc.text)
			switch {
			case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
				t.Errorf("error %v, want %q", err, tc.err)
			case tc.err == "" && (err != nil || got != tc.want):
				t.Errorf("got %+v, %v; want %+v", got, err, tc.want)
			}
		})
	}
}

func FuzzParseProbe(f *testing.F) {
	for _, s := range []string{"/healthz", "/a=200", "/?a=b=404", "=", "/\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parseProbe(text)
		if err != nil {
			return
		}
		if !strings.HasPrefix(p.path, "/") || strings.ContainsAny(p.path, "\r\n \x00") || p.status != 0 && (p.status < 200 || p.status > 599) {
			t.Errorf("%q became %+v", text, p)
		}
	})
}

func TestTailWriter_KeepsTheLast(t *testing.T) {
	var w tailWriter
	for i := range 5000 {
		if _, err := w.Write([]byte(strings.Repeat("x", i%7) + "\r\n")); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = w.Write([]byte("last, and unfinished"))
	got := w.lines()
	if len(got) != tailLines || got[len(got)-1] != "last, and unfinished" || len(w.text) > tailBytes {
		t.Errorf("%d bytes kept; the lines are %q", len(w.text), got)
	}
	for _, l := range got {
		if l == "" || strings.ContainsAny(l, "\r\n") {
			t.Errorf("line %q", l)
		}
	}
}

// What a command leaves in the background holds its output, and is no reason to wait or to fail.
func TestShell_LeavesWhatRunsInTheBackground(t *testing.T) {
	var tail tailWriter
	began := time.Now()
	if err := shell(t.Context(), "sleep 20 & echo done", t.TempDir(), os.Environ(), &tail, nil); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("took %v", took)
	}
	if got := tail.lines(); len(got) != 1 || got[0] != "done" {
		t.Errorf("the lines are %q", got)
	}
}

func TestShell_EndsWithItsContext(t *testing.T) {
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	var tail tailWriter
	done := make(chan error, 1)
	go func() { done <- shell(ctx, "echo begun; sleep 600; echo never", t.TempDir(), os.Environ(), &tail, nil) }()
	for len(tail.lines()) == 0 {
		select {
		case err := <-done:
			t.Fatal(err)
		default:
		}
	}
	cancel(cause)
	if err := <-done; !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
}
