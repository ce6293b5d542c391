//go:build linux

package test

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// readiness is what --health says: the status of /readyz, or 0 where nobody answers.
func readiness(t testing.TB, addr string) int {
	t.Helper()
	r, err := tryGet(t, addr, "/readyz")
	if err != nil {
		return 0
	}
	return r.status
}

// --health tells the truth through start, upgrade, the master's death and the stop, which --lame-duck delays.
func TestHealth_TellsTheTruth(t *testing.T) {
	t.Parallel()
	health := net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(t)))
	const duck = 2 * time.Second
	s := launch(t, options{flags: []string{"--health", health, "--lame-duck", duck.String(), "--before-start", "while [ ! -e go ]; do sleep 0.02; done"}})
	eventually(t, patience, "the endpoint answers during the start", func() bool { return readiness(t, health) != 0 })
	if r := get(t, health, "/livez"); r.status != 200 {
		t.Errorf("/livez says %d during the start", r.status)
	}
	if got := readiness(t, health); got != 503 {
		t.Errorf("/readyz says %d during the start, want 503", got)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.await("the first workers are ready", msg("Application startup complete"))
	eventually(t, patience, "/readyz says 200", func() bool { return readiness(t, health) == 200 })

	// Whoever asks all the time finds no gap in an upgrade, and none when the master is killed.
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				done <- n
				return
			default:
			}
			if got := readiness(t, health); got != 200 {
				t.Errorf("/readyz said %d while gapless served", got)
			}
			n++
		}
	}()
	s.upgrade(2)
	s.upgrade(3)
	s.killMaster()
	close(stop)
	if n := <-done; n < 10 {
		t.Errorf("asked only %d times", n)
	}
	for path, want := range map[string]int{"/livez": 200, "/": 404} {
		if r := get(t, health, path); r.status != want {
			t.Errorf("%s says %d, want %d", path, r.status, want)
		}
	}

	began := time.Now()
	s.signal(syscall.SIGTERM)
	eventually(t, patience, "/readyz says 503", func() bool { return readiness(t, health) == 503 })
	if took := time.Since(began); took > duck {
		t.Errorf("not ready only after %v", took)
	}
	s.get("/") // and serves on
	s.exits(0)
	if took := time.Since(began); took < duck {
		t.Errorf("ended after %v, before the %v of --lame-duck", took, duck)
	}
}

// A second signal does not wait for the end of the lame-duck time.
func TestHealth_SecondSignalEndsTheLameDuck(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"--lame-duck", "1h"}})
	began := time.Now()
	s.signal(syscall.SIGTERM)
	s.await("it serves on", func(e event) bool { return strings.Contains(e.Msg, "serving on before the drain") })
	s.get("/")
	s.signal(syscall.SIGTERM)
	s.exits(0)
	if took := time.Since(began); took > patience {
		t.Errorf("ended after %v", took)
	}
}

// An address in use is said in one line, and nothing stays.
func TestHealth_AddressInUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := launch(t, options{flags: []string{"--health", l.Addr().String()}})
	s.exits(1)
}
