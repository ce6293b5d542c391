//go:build linux

package test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gapless/internal/load"
)

// host is a network namespace with an address that this one reaches.
type host struct{ name, addr string }

// newHost makes a namespace and a pair of interfaces to it.
func newHost(t *testing.T, n int) host {
	t.Helper()
	id := fmt.Sprintf("gl%05x%d", rand.Uint32()>>12, n)
	subnet := fmt.Sprintf("198.18.%d.", rand.IntN(250)) // of the block for measurements, which nobody routes
	h := host{name: id, addr: subnet + "2"}
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	ip("netns", "add", id)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", id).Run() })
	ip("link", "add", id, "type", "veth", "peer", "name", "eth0", "netns", id)
	ip("addr", "add", subnet+"1/30", "dev", id)
	ip("link", "set", id, "up")
	ip("-n", id, "addr", "add", h.addr+"/30", "dev", "eth0")
	ip("-n", id, "link", "set", "eth0", "up")
	ip("-n", id, "link", "set", "lo", "up")
	return h
}

// gapless runs there, and is waited for until it is ready.
func (h host) gapless(t *testing.T) *server {
	t.Helper()
	s := launch(t, options{
		wrapper: []string{"ip", "netns", "exec", h.name},
		flags:   []string{"--listen", h.addr + ":8000", "--health", h.addr + ":9000", "--lame-duck", "1500ms"},
	})
	s.addr = h.addr + ":8000"
	s.await("the first workers are ready", msg("Application startup complete"))
	return s
}

// haproxy balances over the hosts; it asks their health five times a second and repeats no request.
func haproxy(t *testing.T, hosts []host) (addr string) {
	t.Helper()
	dir := publicDir(t)
	addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(t)))
	var b strings.Builder
	fmt.Fprintf(&b, "global\n  maxconn 2000\ndefaults\n  mode http\n  timeout connect 2s\n  timeout client 60s\n  timeout server 60s\n  timeout check 3s\n  retries 0\n")
	fmt.Fprintf(&b, "frontend in\n  bind %s\n  default_backend hosts\nbackend hosts\n  balance roundrobin\n  option httpchk GET /readyz\n", addr)
	for i, h := range hosts {
		fmt.Fprintf(&b, "  server h%d %s:8000 check port 9000 inter 200ms fall 1 rise 1\n", i, h.addr)
	}
	file := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("haproxy", "-db", "-f", file)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatalf("start haproxy, which make test-deps installs: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if text, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("haproxy: %s", text)
		}
	})
	eventually(t, patience, "haproxy answers", func() bool {
		r, err := tryGet(t, addr, "/healthz")
		return err == nil && r.status == http.StatusOK
	})
	return addr
}

// Two hosts behind HAProxy are restarted one after the other, as an orchestrator does it, under load: HAProxy repeats
// nothing, and no request is lost. The control ends them without the time to say so.
func TestRollingRestart_BehindHAProxy(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		sig  syscall.Signal
		lost bool
	}{
		{"TERM, with a lame-duck time", syscall.SIGTERM, false},
		{"control: QUIT", syscall.SIGQUIT, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hosts := []host{newHost(t, 0), newHost(t, 1)}
			if hosts[0].addr == hosts[1].addr {
				t.Fatal("both hosts got the same subnet: run it again")
			}
			servers := []*server{hosts[0].gapless(t), hosts[1].gapless(t)}
			p := plan{addr: haproxy(t, hosts), every: 500 * time.Millisecond, tail: time.Second, streams: []load.Stream{
				{Kind: load.KeepAlive, Connections: 16, Rate: 200, Method: http.MethodPost, Path: "/echo", Body: 200, Echo: true},
				{Kind: load.NewConn, Connections: 4, Rate: 40, Method: http.MethodPost, Path: "/echo", Body: 200, Echo: true},
				{Kind: load.KeepAlive, Connections: 12, Rate: 20, Method: http.MethodGet, Path: "/slow?ms=300"},
			}}
			rs := p.under(t, counted(2, 10), func(i int) {
				k := i % 2
				s := servers[k]
				s.signal(tc.sig) // `ip netns exec` has become gapless
				s.exits(0)
				servers[k] = hosts[k].gapless(t)
				eventually(t, patience, "the host is back", func() bool { return readiness(t, hosts[k].addr+":9000") == http.StatusOK })
				pause(500 * time.Millisecond) // until HAProxy has seen it
			})
			if !tc.lost {
				rs.noneLost(t)
				return
			}
			if rs.lost() == 0 {
				t.Errorf("hosts were ended at once, and nothing was lost: the load proves nothing\n%s", rs)
			}
		})
	}
}
