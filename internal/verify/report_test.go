package verify

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"gapless/internal/control"
	"gapless/internal/load"
)

// sampleReport has something of everything. It is the report of a made-up run of twelve seconds.
func sampleReport() Report {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r := Report{
		Version: "1.2.3", Target: "./server <fd>", Deploy: "systemctl reload 'app'", URL: "http://127.0.0.1:4711", Started: at, Took: 12,
		Requests: 2403, OK: 2396, Drops: 4, Own: 3, ByClass: map[string]int{"reset": 3, "cut": 1}, Connects: 321, ClosedIdle: 7, ClosedTold: 2, OwnClosed: 5,
		Latency: Latency{2396, 0.001, 0.012, 0.08, 0.31}, Steady: Latency{1500, 0.0009, 0.004, 0.006, 0.011}, Worst: Latency{400, 0.002, 0.09, 0.2, 0.31}, P99Ratio: 22.5,
		Generator: Generator{LagP99: 0.001, LagMax: 0.004, LagLimit: 0.25},
		Streams: []StreamReport{
			{Name: "keep-alive GET", Kind: KindKeepAlive, Request: "GET /", OK: 2000, Drops: 4, Closed: 7, Latency: Latency{2000, 0.001, 0.012, 0.08, 0.31}},
			{Name: "slow GET", Kind: KindSlow, Request: "GET /slow", OK: 396, Latency: Latency{396, 0.5, 0.51, 0.52, 0.53}},
		},
		Acts: []ActReport{
			{Name: "deploy", Number: 1, At: 3, Took: 0.4, OK: true, Generation: "2", First: 0.21, FirstSeen: true, Drops: 3, Closed: 6, Latency: Latency{400, 0.002, 0.09, 0.2, 0.31}},
			{Name: "deploy", Number: 2, At: 6, Took: 0.5, Reason: "aborted: worker 0 ended before it was ready: exit status 7", Latency: Latency{400, 0.001, 0.005, 0.007, 0.008}},
			{Name: KillWorker, Fault: true, Number: 3, At: 9, Took: 0.1, OK: true, Note: "worker 0 (pid 812) was killed with 8 connections open", Own: 3, First: 0.1, Latency: Latency{90, 0.001, 0.005, 0.007, 0.008}},
		},
		Failures: []Failure{
			{At: 3.1, Seen: 3.12, Stream: "keep-alive GET", ID: "x-1", Class: "reset", Reason: "read: connection reset by peer", Served: 12},
			{At: 3.1, Seen: 3.13, Stream: "keep-alive GET", ID: "x-2", Class: "cut", Reason: "read the body after 4 bytes: <unexpected> EOF\x1b", Served: 1},
			{At: 9.0, Seen: 9.01, Stream: "slow GET", ID: "x-3", Class: "eof", Reason: "EOF", Served: 3, Own: true},
		},
		Width: 0.1,
	}
	for i := range 120 {
		b := Bucket{At: seconds(float64(i) / 10), Count: 20, P50: 0.001, P99: 0.004, Max: 0.006}
		switch i {
		case 31:
			b.Drops, b.Closed, b.P99, b.Max = 3, 6, 0.09, 0.31
		case 32, 33:
			b.Count, b.P50, b.P99, b.Max = 0, 0, 0, 0
		case 80:
			b.Drops, b.Closed = 1, 1
		}
		r.Timeline = append(r.Timeline, b)
	}
	return r
}

func TestJudge(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Report, *Limits)
		want   int
		reason string
	}{
		{"nothing lost", func(*Report, *Limits) {}, Passed, ""},
		{"a drop", func(r *Report, _ *Limits) { r.Drops, r.ByClass["eof"] = 1, 1 }, Failed, "1 request was dropped: eof 1"},
		{"a drop that may be", func(r *Report, l *Limits) { r.Drops, l.Drops = 1, 1 }, Passed, ""},
		{"closed, any number", func(r *Report, _ *Limits) { r.ClosedIdle = 9 }, Passed, ""},
		{"closed, none may be", func(r *Report, l *Limits) { r.ClosedIdle, l.Closed = 1, 0 }, Failed, "1 idle connection was closed"},
		{"killed in flight", func(r *Report, _ *Limits) { r.Own, r.OwnClosed = 3, 3 }, Passed, ""},
		{"an act failed", func(r *Report, _ *Limits) { r.Acts[0].OK, r.Acts[0].Reason = false, "aborted" }, Failed, "upgrade 1: aborted"},
		{"slow around", func(r *Report, l *Limits) { r.P99Ratio, l.P99Ratio = 3, 2 }, Failed, "3.0 times"},
		{"slow around, any", func(r *Report, _ *Limits) { r.P99Ratio = 300 }, Passed, ""},
		{"generator behind", func(r *Report, _ *Limits) { r.Generator.Fault = "fell behind" }, Unmeasured, "fell behind"},
		{"generator behind, latency unknown", func(r *Report, l *Limits) { r.Generator.Fault, r.P99Ratio, l.P99Ratio = "fell behind", 3, 2 }, Unmeasured, "fell behind"},
		{"generator behind, and a drop", func(r *Report, _ *Limits) { r.Generator.Fault, r.Drops = "fell behind", 1 }, Failed, "fell behind"},
		{"nothing sent", func(r *Report, _ *Limits) { r.OK, r.Requests = 0, 0 }, Unmeasured, "nothing was sent"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := Report{Requests: 100, OK: 100, ByClass: map[string]int{}, Acts: []ActReport{{Name: "upgrade", Number: 1, OK: true}}}
			l := Limits{Closed: -1}
			tt.change(&r, &l)
			r.Judge(l)
			if reasons := strings.Join(r.Reasons, "; "); r.Status != tt.want || !strings.Contains(reasons, tt.reason) || (tt.reason == "") != (reasons == "") {
				t.Errorf("status %d, want %d: %q", r.Status, tt.want, r.Reasons)
			}
		})
	}
}

// What a killed worker had in hand is told apart, and nothing else.
func TestReport_Own(t *testing.T) {
	start := time.Now()
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	kill := performed{act: Act{Name: KillWorker, Fault: true}, begin: 2 * time.Second, end: 3 * time.Second, outcome: Outcome{Own: map[int]bool{1000: true}, OwnAt: at(2)}}
	tests := []struct {
		name            string
		port            int
		connected, seen float64
		own             bool
	}{
		{"in its hands", 1000, 1, 2.1, true},
		{"another's", 1001, 1, 2.1, false},
		{"lost before", 1000, 1, 1.9, false},
		{"the port used again", 1000, 2.5, 2.6, false},
		{"no connection", 0, 0, 2.1, false},
	}
	p := Plan{Streams: []Stream{{Stream: load.Stream{Name: "s"}}}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, kind := range []load.EventKind{load.Dropped, load.ClosedIdle} {
				r := &runner{plan: &p, start: start, rec: newRecorder(start, p.Streams), done: []performed{kill}}
				r.rec.record(load.Event{Kind: kind, Stream: "s", At: at(1), Seen: at(tt.seen), Port: tt.port, Connected: at(tt.connected), Class: load.EOF, Err: errors.New("EOF")})
				p.URL = (&badServer{}).none()
				rep := r.report(load.Report{Requests: 1, Took: 4 * time.Second, LagLimit: time.Second})
				own, other := rep.Own, rep.Drops
				if kind == load.ClosedIdle {
					own, other = rep.OwnClosed, rep.ClosedIdle
				}
				if (own == 1) != tt.own || own+other != 1 {
					t.Errorf("kind %d: own %d, other %d", kind, own, other)
				}
			}
		})
	}
}

func TestWriteText(t *testing.T) {
	r := sampleReport()
	r.Judge(Limits{Closed: -1})
	var b strings.Builder
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"FAILED\n", "4 (reset 3, cut 1)", "3 requests in flight and 5 idle", "deploy 1", "kill-worker 3", "FAILED", "210 ms", "keep-alive GET (GET /)", "in the hands of the killed worker"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in\n%s", want, b.String())
		}
	}
	for line := range strings.Lines(b.String()) {
		if strings.HasSuffix(line, " \n") {
			t.Errorf("blanks at the end of %q", line)
		}
	}
}

// A server that closes idle connections passes beside its clients; the reader is told what that is worth.
func TestReport_Hints(t *testing.T) {
	tests := []struct {
		name   string
		report Report
		hint   bool
	}{
		{"nothing closed", Report{Status: Passed}, false},
		{"closed, near", Report{Status: Passed, ClosedIdle: 16}, true},
		{"closed, far away", Report{Status: Passed, ClosedIdle: 16, RTT: 0.02}, false},
		{"failed anyway", Report{Status: Failed, ClosedIdle: 16}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for name, write := range map[string]func(io.Writer) error{"HTML": tt.report.WriteHTML, "text": tt.report.WriteText} {
				var b strings.Builder
				if err := write(&b); err != nil || strings.Contains(b.String(), "closed 16 idle connections without a word") != tt.hint {
					t.Errorf("%s: %v\n%s", name, err, b.String())
				}
			}
		})
	}
}

// Reading back what CI systems read.
func TestWriteJUnit(t *testing.T) {
	for _, status := range []int{Passed, Failed, Unmeasured} {
		r := sampleReport()
		want := junitSuite{Tests: 5, Failures: 3} // deploys 1 and 2, and the whole
		switch status {
		case Passed:
			r.Drops, r.ByClass, r.Acts[0].Drops, r.Acts[1].OK, want.Failures = 0, nil, 0, true, 0
		case Unmeasured:
			r.Drops, r.ByClass, r.Acts[0].Drops, r.Acts[1].OK, want.Failures, want.Errors, want.Skipped = 0, nil, 0, true, 0, 1, 4
			r.Generator.Fault = "fell \x00behind\uffff"
		case Failed:
			want.Failures = 4 // and the one drop that belongs to none of them
		}
		r.Judge(Limits{Closed: -1})
		var b bytes.Buffer
		if err := r.WriteJUnit(&b); err != nil {
			t.Fatal(err)
		}
		var got junitSuite
		if err := xml.Unmarshal(b.Bytes(), &got); err != nil {
			t.Fatalf("%v in\n%s", err, b.String())
		}
		failures, errs, skipped := 0, 0, 0
		for _, c := range got.Cases {
			if c.Failure != nil {
				failures++
			}
			if c.Error != nil {
				errs++
				if c.Error.Message != "fell behind" {
					t.Errorf("the error says %q", c.Error.Message)
				}
			}
			if c.Skipped != nil {
				skipped++
			}
		}
		if got.Tests != len(got.Cases) || got.Tests != want.Tests || got.Failures != failures || failures != want.Failures || got.Errors != errs || errs != want.Errors || got.Skipped != skipped || skipped != want.Skipped {
			t.Errorf("status %d: %d tests, %d failures, %d errors, want %+v\n%s", r.Status, got.Tests, got.Failures, got.Errors, want, b.String())
		}
		if !strings.Contains(got.Out.Text, "steady state") || !strings.Contains(got.Out.Text, "\n") {
			t.Errorf("the table is not in system-out: %q", got.Out.Text)
		}
	}
}

// The names of the JSON are a contract with those who parse it.
func TestReport_JSON(t *testing.T) {
	r := sampleReport()
	r.Judge(Limits{Closed: -1})
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back map[string]any
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"status", "reasons", "requests", "drops", "drops_by_class", "closed_idle", "killed_in_flight", "latency_steady", "acts", "streams", "generator", "timeline", "p99_ratio"} {
		if _, ok := back[key]; !ok {
			t.Errorf("%s is missing", key)
		}
	}
	if back["status"] != 1.0 || back["took_seconds"] != 12.0 {
		t.Errorf("status %v, took %v", back["status"], back["took_seconds"])
	}
}

// A run that could not begin has a report of every kind, and each says so.
func TestPlan_NotMeasured(t *testing.T) {
	p := Plan{Target: "./server", Streams: []Stream{{Stream: load.Stream{Name: "keep", Method: "GET", Path: "/"}}}}
	r := p.NotMeasured("nothing could be measured: GET / answers 404")
	text, err := json.Marshal(r)
	if err != nil || bytes.Contains(text, []byte("null")) || !bytes.Contains(text, []byte(`"status":2,"reasons":["nothing could be measured: GET / answers 404"]`)) {
		t.Errorf("%v, %s", err, text)
	}
	for name, write := range map[string]func(io.Writer) error{"JUnit": r.WriteJUnit, "HTML": r.WriteHTML, "text": r.WriteText} {
		var b strings.Builder
		if err := write(&b); err != nil || !strings.Contains(b.String(), "NOT MEASURED") || !strings.Contains(b.String(), "GET / answers 404") || strings.Contains(b.String(), "PASSED") || strings.Contains(b.String(), "closed idle") {
			t.Errorf("%s: %v\n%s", name, err, b.String())
		}
	}
	var suite junitSuite
	var b bytes.Buffer
	if err := errors.Join(r.WriteJUnit(&b), xml.Unmarshal(b.Bytes(), &suite)); err != nil || suite.Errors != 1 || suite.Failures != 0 || suite.Skipped != suite.Tests-1 {
		t.Errorf("%v, %+v", err, suite)
	}
}

func TestPhaseText(t *testing.T) {
	tests := []struct {
		event control.Event
		want  string
	}{
		{control.Event{}, ""},
		{control.Event{Generation: 2, State: "steps"}, ": generation 2 is in phase steps"},
		{control.Event{Generation: 2, State: "starting", Ready: 1, Total: 4, LastLines: []string{"connecting", "waiting for the database"}}, ": generation 2 is in phase starting, 1 of 4: waiting for the database"},
	}
	for _, tt := range tests {
		if got := phaseText(tt.event); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

func TestStrip(t *testing.T) {
	l := &Live{At: 3 * time.Second, Answered: 600, Drops: 2, Columns: []LiveColumn{
		{Max: time.Millisecond}, {Max: 30 * time.Millisecond}, {}, {Act: true, Max: time.Millisecond}, {Max: 2 * time.Second}, {Drops: 2, Max: time.Millisecond},
	}}
	s := &Show{}
	if got := s.strip(l, 79); !strings.HasSuffix(got, "2 dropped  ▁▄ │█× max 2.00 s") || len([]rune(got)) > 79 {
		t.Errorf("%q", got)
	}
	for _, width := range []int{10, 40, 50, 60, 200} {
		if got := []rune(s.strip(l, width)); width >= 40 && len(got) > width {
			t.Errorf("%d columns for a width of %d", len(got), width)
		}
	}
	s.Colour = true
	if got := s.strip(l, 200); !strings.Contains(got, red+"×"+normal) || !strings.Contains(got, cyan+"│"+normal) {
		t.Errorf("%q", got)
	}
}

// A terminal gets one line that is rewritten, everything else only whole lines.
func TestShow(t *testing.T) {
	acts := []Progress{
		{At: time.Second, Act: "upgrade", Number: 1, Total: 2},
		{At: time.Second, Live: &Live{At: time.Second, Answered: 5}},
		{At: 2 * time.Second, Act: "upgrade", Number: 1, Total: 2, Ended: true, Outcome: "generation 2 is in charge"},
		{At: 3 * time.Second, Act: "upgrade", Number: 2, Total: 2, Ended: true, Failed: true, Outcome: "aborted"},
	}
	for _, terminal := range []bool{false, true} {
		var b strings.Builder
		s := &Show{Out: &b, Terminal: terminal, Width: func() int { return 80 }}
		for _, p := range acts {
			s.Progress(p)
		}
		s.End()
		got := b.String()
		if terminal != strings.Contains(got, wipe) || !strings.Contains(got, "upgrade 1/2 done: generation 2 is in charge\n") || !strings.Contains(got, "upgrade 2/2 failed: aborted\n") {
			t.Errorf("terminal %v: %q", terminal, got)
		}
		if strings.Contains(got, "\x1b[3") {
			t.Errorf("colours that were not asked for: %q", got)
		}
	}
}
