//go:build linux

package test

import (
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serves tells whether anybody answers at an address.
func serves(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, 100*time.Millisecond)
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(500 * time.Millisecond))
	if _, err := c.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")); err != nil {
		return false
	}
	n, _ := c.Read(make([]byte, 1))
	return n == 1
}

// A killed parent: within two seconds nobody accepts any more, though requests are under way, and the address is free for
// a fresh start, which serves at once. What is under way is finished, also after the master was replaced before.
func TestOrphans_KilledParent(t *testing.T) {
	for _, tt := range []struct {
		name    string
		command []string
		path    string
		replace bool
	}{
		{"the built-in app", nil, "/slow?ms=4000", false},
		{"after a killed master", nil, "/slow?ms=4000", true},
		{"a command that knows nothing", role("shutdown"), "/?ms=4000", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := start(t, options{command: tt.command})
			if tt.replace {
				s.killMaster()
			}
			slow := s.ask(tt.path)
			s.inFlight(slow)
			s.signal(syscall.SIGKILL)
			<-s.exited
			died := time.Now()
			eventually(t, patience, "nobody answers", func() bool { return !serves(s.addr) })
			if took := time.Since(died); took > 2*time.Second {
				t.Errorf("somebody accepted for %v", took)
			}
			var next *server
			eventually(t, 3*time.Second, "a fresh start finds the address free", func() bool {
				c, err := net.DialTimeout("tcp", s.addr, 50*time.Millisecond)
				if err == nil {
					c.Close()
				}
				return err != nil && strings.Contains(err.Error(), "refused")
			})
			_, port, _ := net.SplitHostPort(s.addr)
			next = start(t, options{flags: []string{"--listen", "127.0.0.1:" + port}})
			next.addr = s.addr
			next.get("/").generation(1)
			if r := slow.answer(t); r.status != http.StatusOK {
				t.Errorf("status %d", r.status)
			}
			eventually(t, patience, "the old ones have ended", func() bool { return len(leftovers(s.mark)) == 0 })
			next.stop()
		})
	}
}

// Parent and master at once: workers that know the channel end by themselves; of others the next start says which they are,
// and how to end them.
func TestOrphans_KilledParentAndMaster(t *testing.T) {
	t.Run("the built-in app", func(t *testing.T) {
		t.Parallel()
		s := start(t, options{})
		slow := s.ask("/slow?ms=700")
		s.inFlight(slow)
		kill(s.pid())
		kill(s.first)
		<-s.exited
		slow.answer(t)
		eventually(t, patience, "the workers have ended", func() bool { return len(leftovers(s.mark)) == 0 })
	})
	t.Run("a command that knows nothing", func(t *testing.T) {
		t.Parallel()
		s := start(t, options{command: role("shutdown")})
		workers := s.workers(1)
		kill(s.first)
		kill(s.pid())
		<-s.exited
		eventually(t, patience, "only workers are left", func() bool { return len(leftovers(s.mark)) == len(workers) })
		_, port, _ := net.SplitHostPort(s.addr)
		out, err := exec.CommandContext(t.Context(), s.bin, "run", "--port", port).CombinedOutput()
		if err == nil || strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), "kill ") {
			t.Fatalf("the next start: %v, %q", err, out)
		}
		for _, w := range workers {
			if strings.Count(string(out), fmt.Sprint(w.PID)) != 2 {
				t.Errorf("%q does not name %d and how to end it", out, w.PID)
			}
		}
		_, command, _ := strings.Cut(strings.TrimSpace(string(out)), "end it with: ")
		if text, err := exec.CommandContext(t.Context(), "/bin/sh", "-c", command).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v, %s", command, err, text)
		}
		eventually(t, patience, "that has ended them", func() bool { return len(leftovers(s.mark)) == 0 })
	})
}
