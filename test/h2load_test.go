//go:build linux

package test

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// h2result is what one run of h2load says of the requests that it has sent.
type h2result struct {
	answered int
	refused  int // streams that ended without an answer: behind the last one that GOAWAY named, or reset
	lost     int // with their connection
}

var h2summary = regexp.MustCompile(`(?m)^requests: \d+ total, (\d+) started, (\d+) done`)

// h2handled is what a worker says at its end.
var h2handled = regexp.MustCompile(`(?m)^handled (\d+)$`)

// h2load runs the HTTP/2 client of that name until the server has said GOAWAY on each connection, as it opens none
// anew. Requests that it had not sent by then count as failed in its summary, so its log decides.
func h2load(t *testing.T, addr string, during func()) (r h2result) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	log := filepath.Join(t.TempDir(), "requests")
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "h2load", "-c", "8", "-m", "4", "-n", "4000", "--rps", "100", "--log-file", log, "https://"+addr+"/?ms=20")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatalf("start h2load, which make test-deps installs: %v", err)
	}
	running := make(chan error, 1)
	go func() { running <- cmd.Wait() }()
	for limit := time.Now().Add(patience); ; pause(5 * time.Millisecond) { // until all clients have had answers
		if text, err := os.ReadFile(log); err == nil && bytes.Count(text, []byte("\n")) > 100 {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("h2load has had no answers:\n%s", &out)
		}
	}
	during()
	if err := <-running; err != nil {
		t.Fatalf("h2load: %v\n%s", err, &out)
	}
	m := h2summary.FindStringSubmatch(out.String())
	if m == nil {
		t.Fatalf("h2load has printed no summary:\n%s", &out)
	}
	started, _ := strconv.Atoi(m[1])
	done, _ := strconv.Atoi(m[2])
	r.lost = started - done
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		switch fields := strings.Fields(lines.Text()); {
		case len(fields) != 3:
			t.Fatalf("h2load's log says %q", lines.Text())
		case fields[0] == "0": // never sent
		case fields[1] == "200":
			r.answered++
		default:
			r.refused++
		}
	}
	return r
}

// An HTTP/2 client that is not Go's loses no request: whatever a worker has begun is answered. A request that crosses
// the GOAWAY on its way is refused by it, which tells the client that nobody has looked at it; h2load does not repeat
// such requests, as browsers and Go's client do.
func TestHTTP2_H2LoadLosesNothing(t *testing.T) {
	s, _ := secureServer(t, "-w", "2")
	var all h2result
	for i := range counted(3, 20) {
		r := h2load(t, s.addr, func() { s.upgrade(i + 2) })
		all.answered, all.refused, all.lost = all.answered+r.answered, all.refused+r.refused, all.lost+r.lost
	}
	s.stop()
	text, err := os.ReadFile(s.out.path)
	if err != nil {
		t.Fatal(err)
	}
	begun := 0
	for _, m := range h2handled.FindAllStringSubmatch(string(text), -1) {
		n, _ := strconv.Atoi(m[1])
		begun += n
	}
	t.Logf("h2load: %d requests answered of the %d that the workers have begun, %d refused by GOAWAY, %d lost", all.answered, begun, all.refused, all.lost)
	if all.lost > 0 || all.answered != begun || begun == 0 {
		t.Errorf("of %d requests that the workers have begun %d were answered; %d were lost with their connection", begun, all.answered, all.lost)
	}
}

// The control: what h2load loses with a worker that is killed must be found, or the test above proves nothing.
func TestHTTP2_H2LoadFindsWhatIsLost(t *testing.T) {
	s, _ := secureServer(t)
	r := h2load(t, s.addr, func() { s.restartWorker(1, 0) })
	t.Logf("h2load: %d requests answered, %d lost", r.answered, r.lost)
	if r.lost == 0 {
		t.Error("a worker was killed, and h2load has lost nothing")
	}
	s.stop()
}
