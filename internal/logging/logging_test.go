package logging

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// written returns what a console logger writes.
func written(colour bool, log func(*zap.Logger)) string {
	var b strings.Builder
	log(zap.New(zapcore.NewCore(newConsole(colour), zapcore.AddSync(&b), zapcore.DebugLevel)))
	return b.String()
}

func TestConsole_Lines(t *testing.T) {
	for _, tc := range []struct {
		name string
		log  func(*zap.Logger)
		want string
	}{
		{"bare", func(l *zap.Logger) { l.Info("Waiting") }, "INFO:     Waiting\n"},
		{"the levels", func(l *zap.Logger) { l.Debug("d"); l.Warn("w"); l.Error("e"); l.DPanic("p") },
			"DEBUG:    d\nWARNING:  w\nERROR:    e\nERROR:    p\n"},
		{"the pid in brackets", func(l *zap.Logger) { l.Info("Started worker", zap.Int("worker", 2), zap.Int("pid", 812)) },
			"INFO:     Started worker [812] worker=2\n"},
		{"in the order of the call, then of the alphabet", func(l *zap.Logger) {
			l.With(zap.Int("b", 1), zap.Int("a", 2)).Info("m", zap.Int("z", 3), zap.Int("c", 4))
		}, "INFO:     m z=3 c=4 a=2 b=1\n"},
		{"the call's field beats the logger's, once", func(l *zap.Logger) { l.With(zap.Int("a", 1)).Info("m", zap.Int("a", 2)) }, "INFO:     m a=2\n"},
		{"the logger's own generation goes without saying", func(l *zap.Logger) { l.With(zap.Int("generation", 1)).Info("m") }, "INFO:     m\n"},
		{"the call's does not", func(l *zap.Logger) { l.Info("m", zap.Int("generation", 2)) }, "INFO:     m generation=2\n"},
		{"what the message says already", func(l *zap.Logger) { l.Info("m", zap.String("from", "ready"), zap.String("state", "draining")) }, "INFO:     m\n"},
		{"quotes where there are spaces", func(l *zap.Logger) {
			l.Info("m", zap.String("a", "x y"), zap.String("b", `q"`), zap.String("c", "1\n2"), zap.String("d", "plain"))
		},
			"INFO:     m a=\"x y\" b=\"q\\\"\" c=\"1\\n2\" d=plain\n"},
		{"durations in three digits", func(l *zap.Logger) {
			l.Info("m", zap.Duration("a", 1234567890), zap.Duration("b", 999*time.Nanosecond), zap.Duration("c", 61234*time.Millisecond))
		}, "INFO:     m a=1.23s b=999ns c=1m1.2s\n"},
		{"errors", func(l *zap.Logger) { l.Error("m", zap.Error(errors.New("it broke"))) }, "ERROR:    m error=\"it broke\"\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := written(false, tc.log); got != tc.want {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
	want := "\x1b[33mWARNING\x1b[0m:  m [5] \x1b[2ma=\x1b[0m1\n"
	if got := written(true, func(l *zap.Logger) { l.Warn("m", zap.Int("pid", 5), zap.Int("a", 1)) }); got != want {
		t.Errorf("in colour %q, want %q", got, want)
	}
}

func TestConsole_LoggersDoNotMixTheirFields(t *testing.T) {
	got := written(false, func(l *zap.Logger) {
		a := l.With(zap.Int("a", 1))
		b := a.With(zap.Int("b", 2))
		a.Info("from a")
		b.Info("from b")
		l.Info("from neither")
	})
	if want := "INFO:     from a a=1\nINFO:     from b a=1 b=2\nINFO:     from neither\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// stderr returns what f writes to standard error.
func stderr(t *testing.T, f func()) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	old := os.Stderr
	os.Stderr = w
	f()
	os.Stderr = old
	w.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestNew_WritesOneJSONObjectALine(t *testing.T) {
	got := stderr(t, func() {
		log := New(JSON, zapcore.WarnLevel)
		log.Info("not this one")
		log.Warn("Worker died", zap.Int("pid", 5), zap.Duration("took", 1500*time.Millisecond), zap.String("text", "a\nb"))
		_ = log.Sync()
	})
	if strings.Count(got, "\n") != 1 {
		t.Fatalf("got %q", got)
	}
	var line map[string]any
	if err := json.Unmarshal([]byte(got), &line); err != nil {
		t.Fatal(err)
	}
	if at, err := time.Parse(time.RFC3339Nano, line["time"].(string)); err != nil || time.Since(at) > time.Minute {
		t.Errorf("time %v, %v", line["time"], err)
	}
	for key, want := range map[string]any{"level": "warn", "msg": "Worker died", "pid": 5.0, "took": 1.5, "text": "a\nb"} {
		if line[key] != want {
			t.Errorf("%s is %v, want %v", key, line[key], want)
		}
	}
}

func TestNew_ConsoleOnAPipeHasNoColours(t *testing.T) {
	t.Setenv("TERM", "xterm")
	got := stderr(t, func() {
		if f := DefaultFormat(); f != JSON {
			t.Errorf("the default on a pipe is %s", f)
		}
		log := New(Console, zapcore.InfoLevel)
		log.Info("m")
		_ = log.Sync()
	})
	if got != "INFO:     m\n" {
		t.Errorf("got %q", got)
	}
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 999: "999ns", 1000: "1µs", 1236 * time.Microsecond: "1.24ms", 12345 * time.Millisecond: "12.3s", time.Hour + 1: "1h0m0s",
	} {
		if got := short(d).String(); got != want {
			t.Errorf("%v is shortened to %s, want %s", d, got, want)
		}
	}
}
