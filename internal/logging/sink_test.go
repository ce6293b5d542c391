package logging

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func TestSink_WritesAllInOrder(t *testing.T) {
	var out strings.Builder
	s := newSink(&out, nil)
	var want strings.Builder
	for i := range 5000 {
		line := fmt.Sprintf("line %d\n", i)
		want.WriteString(line)
		if n, err := s.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
		if i%1000 == 0 {
			if err := s.Sync(); err != nil {
				t.Fatal(err)
			}
			if got := out.String(); got != want.String() { // nobody writes now
				t.Fatalf("after line %d there are %d bytes, want %d", i, len(got), want.Len())
			}
		}
	}
	if err := s.Sync(); err != nil || out.String() != want.String() {
		t.Errorf("%v; %d bytes, want %d", err, out.Len(), want.Len())
	}
}

// A pipe that nobody reads: nobody waits for it, and when somebody reads at last, every line is there or counted, and the
// count stands where they are missing.
func TestSink_NeverBlocks(t *testing.T) {
	for _, format := range []string{JSON, Console} {
		t.Run(format, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			log := newLogger(w, format, zapcore.InfoLevel, false)
			const lines = 30_000
			pad := strings.Repeat("x", 80)
			for i := range lines {
				log.Info("A line", zap.Int("n", i), zap.String("pad", pad))
			}
			began := time.Now()
			if err := log.Sync(); !errors.Is(err, errBlocked) {
				t.Errorf("Sync returned %v", err)
			}
			if took := time.Since(began); took > 20*syncPatience {
				t.Errorf("Sync took %v", took)
			}
			read := make(chan []string)
			go func() {
				var got []string
				for in := bufio.NewScanner(r); in.Scan(); {
					got = append(got, in.Text())
				}
				read <- got
			}()
			for log.Sync() != nil {
			}
			log.Info("After it all")
			for log.Sync() != nil {
			}
			w.Close()
			got := <-read
			dropped, seen := 0, 0
			for _, line := range got {
				var n int
				var e struct {
					Msg     string
					Dropped int
				}
				switch {
				case format == JSON:
					if err := json.Unmarshal([]byte(line), &e); err != nil {
						t.Fatalf("%q: %v", line, err)
					}
					n = e.Dropped
				case strings.Contains(line, " dropped="):
					if _, err := fmt.Sscanf(line[strings.Index(line, " dropped="):], " dropped=%d", &n); err != nil {
						t.Fatalf("%q: %v", line, err)
					}
				}
				if dropped += n; n == 0 {
					seen++
				}
			}
			if dropped == 0 || seen+dropped != lines+1 {
				t.Errorf("%d lines came and %d are said to be dropped, of %d", seen, dropped, lines+1)
			}
			if last := got[len(got)-1]; !strings.Contains(last, "After it all") {
				t.Errorf("the last line is %q", last)
			}
		})
	}
}

func TestSink_SyncGivesUpInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe() // it blocks as a bubble knows it
		s := newSink(w, nil)
		_, _ = s.Write([]byte("one\n"))
		began := time.Now()
		if err := s.Sync(); !errors.Is(err, errBlocked) || time.Since(began) != syncPatience {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		buf := make([]byte, 10)
		if n, _ := r.Read(buf); string(buf[:n]) != "one\n" {
			t.Errorf("read %q", buf[:n])
		}
		if err := s.Sync(); err != nil {
			t.Error(err)
		}
	})
}

// busy takes three bytes at a time, and every other time none, as a pipe does that another holder has set not to block.
type busy struct {
	text strings.Builder
	n    int
}

func (b *busy) Write(p []byte) (int, error) {
	if b.n++; b.n%2 == 0 {
		return -1, &os.PathError{Op: "write", Err: syscall.EAGAIN}
	}
	n, _ := b.text.Write(p[:min(3, len(p))])
	if n < len(p) {
		return n, &os.PathError{Op: "write", Err: syscall.EAGAIN}
	}
	return n, nil
}

func TestSink_WaitsForABusyPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b busy
		s := newSink(&b, nil)
		_, _ = s.Write([]byte("a line that is long\n"))
		_, _ = s.Write([]byte("and another\n"))
		if err := s.Sync(); err != nil || b.text.String() != "a line that is long\nand another\n" {
			t.Errorf("%v, %q", err, b.text.String())
		}
	})
}

func TestSink_GivesUpOnAPlaceThatIsGone(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	r.Close()
	s := newSink(w, nil)
	_, _ = s.Write([]byte("one\n"))
	if err := s.Sync(); err != nil {
		t.Error(err)
	}
}
