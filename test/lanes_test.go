//go:build linux

package test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gapless/internal/load"
)

// halt stops a process, and returns when none of its threads can accept a connection any more.
func halt(t *testing.T, pid int) {
	t.Helper()
	signal(t, pid, syscall.SIGSTOP)
	eventually(t, patience, "all threads are stopped", func() bool {
		states := threadStates(pid)
		return states != "" && strings.Trim(states, "T") == ""
	})
}

const stalledMsg = "Worker does not accept; its lane gets no new connections until its queue is empty"

// A worker that is stopped gets no new connections after a moment. Those that it had been given wait for it, and it gets
// its share again when it goes on.
func TestLanes_AHungWorkerIsTakenOut(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"-w", "2"}})
	hung := s.worker(1, 0)
	halt(t, hung.PID)
	var waiting []*later
	eventually(t, patience, "the stopped worker's lane is taken out", func() bool {
		waiting = append(waiting, s.ask("/"))
		pause(10 * time.Millisecond)
		return len(s.out.find(msg(stalledMsg))) > 0
	})
	for range counted(50, 500) {
		var who struct{ PID int }
		if s.get("/").into(&who); who.PID == hung.PID {
			t.Fatal("a process that is stopped has answered")
		}
	}
	signal(t, hung.PID, syscall.SIGCONT)
	late := 0
	for _, l := range waiting {
		var who struct{ PID int }
		if l.answer(t).into(&who); who.PID == hung.PID {
			late++
		}
	}
	if late == 0 {
		t.Error("nobody had waited for the stopped worker, so the test has shown nothing")
	}
	s.await("the worker accepts again", msg("Worker accepts again"))
	eventually(t, patience, "it gets new connections again", func() bool {
		var who struct{ PID int }
		s.get("/").into(&who)
		return who.PID == hung.PID
	})
	s.stop()
}

// queued is a connection that may wait at a dead worker's lane.
type queued struct {
	net.Conn
	silent bool // has sent nothing yet
}

// What waits at the lane of a worker that is killed is passed on: through the queue to workers that take handoffs, by a
// relay to those of a foreign command.
func TestLanes_WhatADeadWorkerHadNotAcceptedIsPassedOn(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"built-in app", "node", "uvicorn"} {
		t.Run(program, func(t *testing.T) {
			o := options{flags: []string{"-w", "2"}, env: []string{"E2E_STARTUP=0"}}
			var s *server
			if program == "built-in app" {
				s = start(t, o)
			} else {
				s = foreign(t, program, o)
			}
			for round := range counted(3, 20) {
				victim := s.worker(1, round%2)
				halt(t, victim.PID)
				var conns []queued
				for i := range 40 {
					c, err := net.Dial("tcp", s.addr)
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { c.Close() })
					_ = c.SetDeadline(time.Now().Add(patience))
					q := queued{c, i%2 == 0}
					if !q.silent {
						q.send(t)
					}
					conns = append(conns, q)
				}
				kill(victim.PID)
				for _, q := range conns {
					if q.silent {
						q.send(t)
					}
				}
				for i, q := range conns {
					resp, err := http.ReadResponse(bufio.NewReader(q), nil)
					if err != nil {
						t.Fatalf("round %d, connection %d (silent until the worker's death: %v) was lost: %v", round, i, q.silent, err)
					}
					if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
						t.Errorf("round %d, connection %d: %s, %v", round, i, resp.Status, err)
					}
					resp.Body.Close()
					q.Close()
				}
				// The next victim is not the only one that serves.
				eventually(t, patience, "a new worker in the dead one's slot serves", func() bool {
					n := 0
					for _, e := range s.out.find(msg("Worker is ready")) {
						if e.Worker == round%2 {
							n++
						}
					}
					return n >= 2+round/2
				})
			}
			s.stop()
		})
	}
}

func (q queued) send(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(q, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
}

// A worker that calls shutdown(2) on its socket harms nobody for longer than a moment: the lane listens again, at its old
// place.
func TestLanes_AListenerThatIsShutDownIsRepaired(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"-w", "2"}, command: role("shuts-its-listener")})
	for round := range 3 {
		s.get("/shut")
		n := round + 1
		eventually(t, patience, "the master notices", func() bool {
			return len(s.out.find(func(e event) bool { return strings.Contains(e.Msg, "shutdown on an inherited") })) == n
		})
		slots := map[string]bool{}
		eventually(t, patience, "both workers get connections again", func() bool {
			slots[strings.Fields(s.get("/").body)[3]] = true
			return len(slots) == 2
		})
		for range 50 {
			s.get("/")
		}
	}
	s.upgrade(2)
	s.get("/").generation(2)
	s.stop()
}

// A worker that accepts before it can serve is asked, at its own lane: no client meets it before.
func TestReady_HTTPAsksTheWorkerAlone(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"-w", "2", "--ready", "http=/up"}, command: role("ready-later")})
	p := plan{addr: s.addr, every: 300 * time.Millisecond, tail: 500 * time.Millisecond,
		streams: []load.Stream{{Kind: load.NewConn, Connections: 8, Rate: 100}}}
	n := counted(3, 10)
	r := p.under(t, n, func(i int) {
		if e := s.upgrade(i + 2); e.Took < 0.5 {
			t.Errorf("the upgrade took %v s, and its workers need half a second", e.Took)
		}
	})
	r.noneLost(t)
	r.answered(t, n+1)
	s.stop()
}

func TestReady_HTTPIsRefusedWhereNobodyCanBeAskedAlone(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	s.run(options{flags: []string{"--listen", "unix:" + filepath.Join(s.dir, "sock"), "--ready", "http=/up"}})
	s.exits(1)
	if text := s.out.tail(t, 20); !strings.Contains(text, "--ready http=/up") || !strings.Contains(text, "choose another way") {
		t.Errorf("it does not say what is wrong and what to do:\n%s", text)
	}
}

// Workers that take one connection at a time share a lane, and nothing is lost when it changes.
func TestShared_NewConnectionsOverUpgrades(t *testing.T) {
	s := foreign(t, "gunicorn", options{flags: []string{"-w", "3", "--accept", "shared"}})
	p := plan{addr: s.addr, every: time.Second, tail: time.Second,
		streams: []load.Stream{{Kind: load.NewConn, Connections: 8, Rate: 100, Method: http.MethodPost, Body: 50}}}
	n := counted(3, 10)
	r := p.under(t, n, func(i int) { s.upgrade(i + 2) })
	r.noneLost(t)
	r.answered(t, n+1)
	s.settled(n+1, len(s.workers(n+1)))
	s.stop()
}

// Idle connections change generation without a word, however many they are.
func TestUpgrade_IdleConnectionsChangeGeneration(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"-w", "2"}})
	n := counted(1000, 10_000)
	type idle struct {
		net.Conn
		br *bufio.Reader
	}
	var conns []idle
	ask := func(c idle) (string, error) {
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return "", err
		}
		resp, err := http.ReadResponse(c.br, nil)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return "", err
		}
		return resp.Header.Get("X-Gapless-Generation"), nil
	}
	for i := range n {
		nc, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		c := idle{nc, bufio.NewReaderSize(nc, 512)}
		if i%2 == 0 { // the others have never sent anything
			if _, err := ask(c); err != nil {
				t.Fatal(err)
			}
		}
		conns = append(conns, c)
	}
	s.upgrade(2)
	s.upgrade(3)
	s.settled(3, 2)
	var count tally
	var wg sync.WaitGroup
	for part := range 16 {
		wg.Go(func() {
			for i := part; i < n; i += 16 {
				g, err := ask(conns[i])
				if err != nil {
					t.Errorf("connection %d: %v", i, err)
				}
				count.add(g)
			}
		})
	}
	wg.Wait()
	if count.by["3"] != n {
		t.Errorf("of %d connections, answered by generation: %v", n, count.by)
	}
	s.stop()
}
