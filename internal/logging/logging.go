// Package logging makes the loggers of gapless's processes: lines like uvicorn's on a terminal, one JSON object a line
// elsewhere. All go to standard error.
//
// Logging never blocks. What standard error does not take waits, up to a mebibyte; beyond that lines are dropped, and a
// line says how many where they are missing. Sync writes what waits, and gives up after half a second: who ends a process
// calls it last.
package logging

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

// The formats of --log-format.
const (
	Console = "console"
	JSON    = "json"
)

// New returns a logger that writes lines of a format and a level to standard error.
func New(format string, level zapcore.Level) *zap.Logger {
	return newLogger(os.Stderr, format, level, colours())
}

func newLogger(out io.Writer, format string, level zapcore.Level, colour bool) *zap.Logger {
	var enc zapcore.Encoder
	if format == Console {
		enc = newConsole(colour)
	} else {
		cfg := zap.NewProductionEncoderConfig()
		cfg.TimeKey, cfg.EncodeTime = "time", zapcore.RFC3339NanoTimeEncoder
		cfg.EncodeDuration = zapcore.SecondsDurationEncoder
		enc = zapcore.NewJSONEncoder(cfg)
	}
	missing := func(n int) []byte {
		e := zapcore.Entry{Level: zapcore.WarnLevel, Time: time.Now(), Message: "Lines of this log were dropped: standard error did not take them"}
		buf, err := enc.Clone().EncodeEntry(e, []zapcore.Field{zap.Int("dropped", n)})
		if err != nil { // neither of the two encoders fails at this
			return nil
		}
		defer buf.Free()
		return append([]byte(nil), buf.Bytes()...)
	}
	return zap.New(zapcore.NewCore(enc, newSink(out, missing), level))
}

// DefaultFormat is console on a terminal, else JSON.
func DefaultFormat() string {
	if Terminal(os.Stderr) {
		return Console
	}
	return JSON
}

// Terminal tells whether f is one.
func Terminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), getTermios)
	return err == nil
}

func colours() bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && Terminal(os.Stderr)
}

// console is an encoder for people: level, message, the PID in brackets, and the other fields as key=value.
type console struct {
	*zapcore.MapObjectEncoder
	colour bool
	pool   buffer.Pool
}

func newConsole(colour bool) *console {
	return &console{zapcore.NewMapObjectEncoder(), colour, buffer.NewPool()}
}

// Clone is called by zap for every With.
func (c *console) Clone() zapcore.Encoder {
	n := newConsole(c.colour)
	for k, v := range c.Fields {
		n.Fields[k] = v
	}
	return n
}

var levels = map[zapcore.Level]struct{ name, colour string }{
	zapcore.DebugLevel: {"DEBUG", "36"}, zapcore.InfoLevel: {"INFO", "32"},
	zapcore.WarnLevel: {"WARNING", "33"}, zapcore.ErrorLevel: {"ERROR", "31"},
}

// said holds the fields that the message says already, in words for people.
var said = map[string]bool{"from": true, "state": true}

// short rounds a duration to what a person reads: three digits.
func short(d time.Duration) time.Duration {
	unit := time.Duration(1)
	for d/unit >= 1000 {
		unit *= 10
	}
	return d.Round(unit)
}

// EncodeEntry writes one line.
func (c *console) EncodeEntry(e zapcore.Entry, fields []zapcore.Field) (*buffer.Buffer, error) {
	all := c.Clone().(*console)
	var keys []string
	for _, f := range fields {
		f.AddTo(all)
		keys = append(keys, f.Key)
	}
	for _, k := range slices.Sorted(maps.Keys(all.Fields)) {
		if !slices.Contains(keys, k) && k != "generation" { // whose line it is goes without saying
			keys = append(keys, k)
		}
	}
	level, ok := levels[e.Level]
	if !ok {
		level = levels[zapcore.ErrorLevel]
	}
	buf := c.pool.Get()
	pad := strings.Repeat(" ", max(1, 9-len(level.name)))
	if c.colour {
		fmt.Fprintf(buf, "\x1b[%sm%s\x1b[0m:%s", level.colour, level.name, pad)
	} else {
		fmt.Fprintf(buf, "%s:%s", level.name, pad)
	}
	buf.AppendString(e.Message)
	if pid, ok := all.Fields["pid"]; ok {
		fmt.Fprintf(buf, " [%v]", pid)
	}
	seen := map[string]bool{"pid": true}
	for _, k := range keys {
		v, ok := all.Fields[k]
		if !ok || seen[k] {
			continue
		}
		seen[k] = true
		if said[k] {
			continue
		}
		if d, ok := v.(time.Duration); ok {
			v = short(d)
		}
		text := fmt.Sprint(v)
		if strings.ContainsAny(text, " \t\n\"") {
			text = fmt.Sprintf("%q", text)
		}
		if c.colour {
			fmt.Fprintf(buf, " \x1b[2m%s=\x1b[0m%s", k, text)
		} else {
			fmt.Fprintf(buf, " %s=%s", k, text)
		}
	}
	buf.AppendString("\n")
	return buf, nil
}
