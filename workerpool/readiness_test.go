package workerpool

import (
	"strings"
	"testing"
	"time"
)

func TestParseReadiness(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want ReadyMode
		line string
		path string
		d    time.Duration
		err  string
	}{
		{in: "auto", want: ReadyAuto},
		{in: "notify", want: ReadyNotify},
		{in: "log=started", want: ReadyLog, line: "started"},
		{in: "log=a=b$", want: ReadyLog, line: "a=b$"},
		{in: "delay=500ms", want: ReadyDelay, d: 500 * time.Millisecond},
		{in: "delay=0s", want: ReadyDelay},
		{in: "delay=0", want: ReadyDelay},
		{in: "http=/ready?a=b", want: ReadyHTTP, path: "/ready?a=b"},

		{in: "", err: `"" is none of auto, notify, log=REGEX, delay=DURATION`},
		{in: "AUTO", err: "none of auto"},
		{in: "auto=", err: "none of auto"},
		{in: "notify=yes", err: "none of auto"},
		{in: "log", err: "none of auto"},
		{in: "log=", err: "none of auto"},
		{in: "log=(", err: `"(" is no regular expression: `},
		{in: "delay", err: "none of auto"},
		{in: "delay=", err: `"" is no duration; write, for example, delay=500ms`},
		{in: "delay=5", err: `"5" is no duration`},
		{in: "delay=-1s", err: `"-1s" is no duration`},
		{in: "http", err: "none of auto"},
		{in: "http=", err: "none of auto"},
		{in: "http=ready", err: "http=/PATH"},
	} {
		t.Run(tc.in, func(t *testing.T) {
			got, err := ParseReadiness(tc.in)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("got %+v, %v; want an error with %q", got, err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.Mode != tc.want || got.Delay != tc.d || got.Path != tc.path || (got.Line == nil) != (tc.line == "") || got.Line != nil && got.Line.String() != tc.line {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func FuzzParseReadiness(f *testing.F) {
	for _, s := range []string{"auto", "notify", "log=x.*", "log=(", "http=/", "delay=1s", "delay=-9223372036854775808ns", "=", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReadiness(s)
		if err != nil {
			if r != (Readiness{}) {
				t.Errorf("%q is refused and yet gives %+v", s, r)
			}
			return
		}
		if (r.Mode == ReadyLog) != (r.Line != nil) || (r.Mode == ReadyHTTP) != (r.Path != "") || r.Delay < 0 || r.Mode != ReadyDelay && r.Delay != 0 {
			t.Errorf("%q gives %+v", s, r)
		}
		if r.hint() == "" {
			t.Errorf("%q has no hint", s)
		}
	})
}

func TestReadiness_HintSaysWhatToDo(t *testing.T) {
	for text, want := range map[string]string{
		"auto": "--ready", "notify": "leave --ready at auto", "log=up": `matched "up"`, "delay=2m": "--start-timeout",
		"http=/up": "GET /up",
	} {
		r, err := ParseReadiness(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.hint(); !strings.Contains(got, want) {
			t.Errorf("the hint for %s is %q; it lacks %q", text, got, want)
		}
	}
}

func TestProbeEvery_SlowsDownWithAge(t *testing.T) {
	last := time.Duration(0)
	for _, age := range []time.Duration{0, 100 * time.Millisecond, time.Second, time.Minute} {
		d := probeEvery(age)
		if d < last || d <= 0 || d > 50*time.Millisecond {
			t.Errorf("at %v a probe every %v, before every %v", age, d, last)
		}
		last = d
	}
}
