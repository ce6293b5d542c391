//go:build linux

package test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gapless"
	builtin "gapless/internal/app"

	"golang.org/x/sys/unix"
)

// appEverywhere is the built-in app at every socket that it was passed.
func appEverywhere() int {
	var wg sync.WaitGroup
	for _, name := range strings.Split(os.Getenv("LISTEN_FDNAMES"), ":") {
		wg.Go(func() {
			h := builtin.New(builtin.Info{Generation: gapless.Generation(), Worker: gapless.Worker(), PID: os.Getpid()})
			if err := gapless.Serve(&http.Server{Addr: name + "=:0", Handler: h}); err != nil {
				fmt.Fprintln(os.Stderr, name, err)
			}
		})
	}
	wg.Wait()
	return 0
}

// waiting is a client whose request nobody has read yet.
type waiting struct{ conn net.Conn }

// clients connects n clients that each send a request.
func clients(t testing.TB, network, addr string, n int) (all []waiting) {
	t.Helper()
	for range n {
		c, err := net.DialTimeout(network, addr, patience)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := c.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		all = append(all, waiting{c})
	}
	return all
}

// served demands that each of them is answered.
func served(t testing.TB, all []waiting) {
	t.Helper()
	lost := 0
	var why error
	for _, w := range all {
		_ = w.conn.SetDeadline(time.Now().Add(patience))
		answer := make([]byte, 12)
		if n, err := w.conn.Read(answer); n != len(answer) || string(answer) != "HTTP/1.1 200" {
			lost, why = lost+1, fmt.Errorf("%q, %w", answer[:n], err)
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d clients that waited were not served: %v", lost, len(all), why)
	}
}

// freeze stops the workers, so that whoever connects from now on waits.
func (s *server) freeze(generation int) {
	s.t.Helper()
	var pids []int
	for _, w := range s.workers(generation) {
		pids = append(pids, w.PID)
	}
	stop(s.t, pids)
}

// All of gapless is killed at once, while clients wait at every lane, and again before the next one has come: the next one
// gets the sockets back, and serves them all. Its lanes are in the right order: nobody has to be passed on.
func TestSystemd_KilledAsAWholeServesWhoWaits(t *testing.T) {
	for _, tt := range []struct {
		name     string
		flags    []string
		command  []string
		upgrades int
	}{
		{"with a lane per worker", nil, role("app-everywhere"), 0},
		{"after upgrades", nil, role("app-everywhere"), 3},
		{"with a lane per generation", []string{"--accept", "shared"}, role("app-everywhere"), 1},
		{"with a command that knows nothing", nil, role("all-listeners"), 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := newManager(t)
			m.max = 32
			port := strconv.Itoa(freePort(t))
			path := filepath.Join(publicDir(t), "sock")
			o := options{flags: append([]string{"-w", "3", "--listen", "127.0.0.1:" + port, "--listen", "local=unix:" + path}, tt.flags...), command: tt.command}
			s := m.start(o)
			s.addr = "127.0.0.1:" + port
			for i := range tt.upgrades {
				s.upgrade(i + 2)
			}
			s.settled(tt.upgrades+1, 3)
			m.serving(tt.upgrades + 1)
			lanes := m.names()
			for round := range counted(2, 10) {
				generation := 1
				if round == 0 {
					generation += tt.upgrades
				}
				s.freeze(generation)
				all := append(clients(t, "tcp", s.addr, 24), clients(t, "unix", path, 3)...)
				m.killAll(s)
				all = append(all, clients(t, "tcp", s.addr, 24)...)
				all = append(all, clients(t, "unix", path, 3)...)
				m.mark()
				next := prepare(t)
				next.addr = s.addr
				m.run(next, o)
				m.ready(next)
				served(t, all)
				s = next
				if now := m.names(); !slices.Equal(without(now, "gapless/ledger/"), without(lanes, "gapless/ledger/")) || len(now) != len(lanes) {
					t.Errorf("kept were %q, and are %q", lanes, now)
				}
			}
			if tt.command[1] == role("app-everywhere")[1] {
				p := plan{addr: s.addr, streams: postStreams("/echo", requestsPerSecond()/4), every: slower(200 * time.Millisecond), tail: slower(500 * time.Millisecond)}
				p.under(t, 2, func(i int) { s.upgrade(i + 2) }).noneLost(t)
			} else {
				s.upgrade(2)
				s.upgrade(3)
			}
			s.settled(3, 3)
			m.serving(3)
			m.mark()
			s.stop()
			if left := m.names(); len(left) > 0 {
				t.Errorf("after a stop the manager keeps %q", left)
			}
			if texts := m.texts(); texts[0] != "STOPPING=1" {
				t.Errorf("the stop began with %q", texts)
			}
		})
	}
}

// serving waits until the manager has heard that the generation serves: it is the last thing told of an upgrade, after what is
// kept for it, and some time after the upgrade's own answer.
func (m *manager) serving(generation int) {
	m.t.Helper()
	m.await(fmt.Sprintf("generation %d serves", generation), func(text string) bool {
		return strings.HasPrefix(text, "READY=1 ") && strings.Contains(text, fmt.Sprintf(": generation %d serving ", generation))
	})
}

func without(names []string, prefix string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return strings.HasPrefix(n, prefix) })
}

// What is kept is told in the right order: lanes in theirs, the ledger after them, nothing before the first generation serves.
func TestSystemd_KeepsLanesAndLedger(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	m.max = 16
	s := m.start(options{})
	const keep = `FDSTORE=1 FDPOLL=0 FDNAME=gapless/`
	m.await("the ledger is kept", func(text string) bool { return strings.Contains(text, "ledger/1-1") })
	const lane = keep + "lane/web#"
	ready := `READY=1 MAINPID=PID ` + serving(1, 2)
	m.exactly(true, lane+"0", lane+"1", keep+"ledger/1-0", keep+"ledger/1-1", ready)

	s.upgrade(2) // opens two lanes more
	s.settled(2, 2)
	m.await("the older ledger goes", func(text string) bool { return text == "FDSTOREREMOVE=1 FDNAME=gapless/ledger/1-1" })
	m.exactly(true, told+`generation 1 upgrading with 2 of 2 workers`, lane+"2", lane+"3", keep+"ledger/2-0", keep+"ledger/2-1",
		"FDSTOREREMOVE=1 FDNAME=gapless/ledger/1-0", "FDSTOREREMOVE=1 FDNAME=gapless/ledger/1-1", complete+serving(2, 2))

	s.killMaster()
	m.await("the older ledger goes", func(text string) bool { return text == "FDSTOREREMOVE=1 FDNAME=gapless/ledger/2-1" })
	m.mark()
	s.upgrade(3) // takes the lanes that are free
	s.settled(3, 2)
	m.await("the older ledger goes", func(text string) bool { return text == "FDSTOREREMOVE=1 FDNAME=gapless/ledger/3-1" })
	if got := m.names(); len(got) != 4+2 {
		t.Errorf("kept are %q", got)
	}
	m.mark()
	s.stop()
	gone := "FDSTOREREMOVE=1 FDNAME=gapless/"
	m.exactly(true, `STOPPING=1`, gone+"lane/web#0", gone+"lane/web#1", gone+"lane/web#2", gone+"lane/web#3",
		gone+`ledger/4-0`, gone+`ledger/4-1`)
}

// A parent that is killed alone: its tree drains and leaves the sockets alone, whoever comes meanwhile is served by the next
// parent, whether that starts when all has gone (KillMode=control-group) or beside it (KillMode=process).
func TestSystemd_KilledParentLeavesTheSockets(t *testing.T) {
	for _, beside := range []bool{false, true} {
		t.Run(map[bool]string{false: "and the next one comes afterwards", true: "and the next one comes at once"}[beside], func(t *testing.T) {
			t.Parallel()
			m := newManager(t)
			m.max = 32
			port, path := strconv.Itoa(freePort(t)), filepath.Join(publicDir(t), "sock")
			o := options{flags: []string{"-w", "3", "--listen", "127.0.0.1:" + port, "--listen", "local=unix:" + path}, command: role("app-everywhere")}
			s := m.start(o)
			s.addr = "127.0.0.1:" + port
			s.upgrade(2)
			s.settled(2, 3)
			slow := s.ask("/slow?ms=2500")
			s.inFlight(slow)
			s.signal(syscall.SIGKILL)
			<-s.exited
			next := prepare(t)
			next.addr = s.addr
			if !beside {
				eventually(t, patience, "the old ones have ended", func() bool { return len(leftovers(s.mark)) == 0 })
				slow.answer(t)
			}
			all := append(clients(t, "tcp", s.addr, 24), clients(t, "unix", path, 3)...)
			m.mark()
			m.run(next, o)
			m.ready(next)
			served(t, all)
			if beside {
				slow.answer(t)
				eventually(t, patience, "the old ones have ended", func() bool { return len(leftovers(s.mark)) == 0 })
			}
			served(t, append(clients(t, "tcp", s.addr, 24), clients(t, "unix", path, 3)...))
			next.upgrade(2)
			next.settled(2, 3)
			served(t, append(clients(t, "tcp", s.addr, 24), clients(t, "unix", path, 3)...))
			next.stop()
		})
	}
}

// A start with another configuration, or by another gapless, is not hindered by what a killed one left.
func TestSystemd_OldSocketsThatNobodyWants(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	m.max = 32
	s := m.start(options{})
	m.killAll(s)
	old := without(m.names(), "gapless/ledger/")
	m.mark()
	next := prepare(t)
	m.run(next, options{}) // on another port
	m.ready(next)
	next.await("it is said", func(e event) bool {
		return strings.HasPrefix(e.Msg, "The sockets of the gapless before are not taken over")
	})
	next.get("/").generation(1)
	for _, name := range old {
		m.await(name+" goes", func(text string) bool { return text == "FDSTOREREMOVE=1 FDNAME="+name })
	}
	if c, err := net.DialTimeout("tcp", s.addr, time.Second); err == nil {
		c.Close()
		t.Error("somebody listens at the old address")
	}
	m.killAll(next)
	m.mark()
	// Its ledger is not readable.
	m.mu.Lock()
	m.store = slices.DeleteFunc(m.store, func(k kept) bool { return strings.HasPrefix(k.name, "gapless/ledger/") })
	m.mu.Unlock()
	third := prepare(t)
	third.addr = next.addr
	_, port, _ := net.SplitHostPort(next.addr)
	m.run(third, options{flags: []string{"--listen", "127.0.0.1:" + port}})
	m.ready(third)
	third.get("/").generation(1)
	third.stop()
	if left := m.names(); len(left) > 0 {
		t.Errorf("after a stop the manager keeps %q", left)
	}
}

// socketUnit opens a socket as a socket unit does.
func socketUnit(t testing.TB, network, address string) *os.File {
	t.Helper()
	var fd int
	var err error
	if network == "unix" {
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
			err = unix.Bind(fd, &unix.SockaddrUnix{Name: address})
		}
	} else {
		ap := net.ParseIP("127.0.0.1").To4()
		port, _ := strconv.Atoi(address)
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP); err == nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) // ReusePort=yes
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte(ap)})
		}
	}
	if err == nil {
		err = unix.Listen(fd, 100)
	}
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), address)
	t.Cleanup(func() { f.Close() })
	return f
}

// Sockets of socket units, by name; two that have one name are taken in their order.
func TestSystemd_SocketUnits(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	m.max = 32
	first, second, path := strconv.Itoa(freePort(t)), strconv.Itoa(freePort(t)), filepath.Join(publicDir(t), "sock")
	m.sockets = []kept{
		{"app.socket", socketUnit(t, "tcp", first)}, {"app.socket", socketUnit(t, "tcp", second)}, {"local", socketUnit(t, "unix", path)},
		{"spare", socketUnit(t, "tcp", strconv.Itoa(freePort(t)))},
	}
	o := options{flags: []string{"-w", "2", "--listen", "web=fd:app.socket", "--listen", "admin=fd:app.socket", "--listen", "fd:local"}, command: role("app-everywhere")}
	all := append(clients(t, "tcp", "127.0.0.1:"+first, 5), clients(t, "tcp", "127.0.0.1:"+second, 5)...) // before anybody is there
	s := m.start(o)
	s.addr = "127.0.0.1:" + first
	served(t, append(all, clients(t, "unix", path, 5)...))
	if n := len(s.out.find(func(e event) bool { return strings.HasPrefix(e.Msg, "Sockets that no --listen fd:NAME asks for") })); n != 1 {
		t.Errorf("the spare socket was mentioned %d times", n)
	}
	if st := s.verb("status").stdout; !strings.Contains(st, "http://127.0.0.1:"+first) || !strings.Contains(st, "http://127.0.0.1:"+second) || !strings.Contains(st, "unix:"+path) {
		t.Errorf("status does not say where it serves:\n%s", st)
	}
	p := plan{addr: s.addr, streams: postStreams("/echo", requestsPerSecond()/4), every: slower(200 * time.Millisecond), tail: slower(500 * time.Millisecond)}
	p.under(t, 2, func(i int) { s.upgrade(i + 2) }).noneLost(t)
	s.settled(3, 2)

	s.freeze(3)
	queued := append(clients(t, "tcp", "127.0.0.1:"+first, 8), clients(t, "tcp", "127.0.0.1:"+second, 8)...)
	m.killAll(s)
	queued = append(queued, clients(t, "unix", path, 3)...)
	m.mark()
	next := prepare(t)
	m.run(next, o)
	m.ready(next)
	next.addr = s.addr
	served(t, queued)
	next.upgrade(2)
	next.settled(2, 2)
	next.stop()
	// They are systemd's own, and there for the next start.
	again := prepare(t)
	queued = append(clients(t, "tcp", "127.0.0.1:"+first, 8), clients(t, "tcp", "127.0.0.1:"+second, 8)...)
	m.mark()
	m.run(again, o)
	m.ready(again)
	served(t, queued)
	again.stop()
}
