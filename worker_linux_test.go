package gapless

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gapless/internal/channel"
	"gapless/internal/handoff"
	"gapless/internal/testwait"
)

// rawDup is a descriptor as a process inherits it: a number that nobody owns.
func rawDup(t *testing.T, f *os.File) string {
	t.Helper()
	rc, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	n := -1
	if cerr := rc.Control(func(fd uintptr) { n, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return strconv.Itoa(n)
}

// worker is a process with a channel, a queue and the socket "web".
func worker(t *testing.T) (p *process, master *channel.Conn, queue *handoff.Sender, addr string, done chan error) {
	t.Helper()
	mf, wf, err := channel.Pair()
	if err != nil {
		t.Fatal(err)
	}
	if master, err = channel.New(mf); err != nil {
		t.Fatal(err)
	}
	rf, sf, err := handoff.NewPair()
	if err != nil {
		t.Fatal(err)
	}
	if queue, err = handoff.NewSender(sf); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{envChannel: rawDup(t, wf), envHandoff: rawDup(t, rf), envWorker: "2", envGeneration: "9"}
	_ = wf.Close()
	_ = rf.Close()
	p = newProcess(1, func(k string) (string, bool) { v, ok := env[k]; return v, ok },
		func(k string) error { delete(env, k); return nil })
	if p.envErr != nil || len(env) != 0 || p.env.worker != 2 || p.env.generation != 9 {
		t.Fatalf("%v, left %v, worker %d, generation %d", p.envErr, env, p.env.worker, p.env.generation)
	}
	t.Cleanup(func() { p.end(); _ = master.Close(); _ = queue.Close() })
	// Its first word comes before its sockets, so that those are no sign of readiness.
	if m, _, err := master.Receive(t.Context()); err != nil || m != (channel.Hello{Version: channel.Version, PID: os.Getpid()}) {
		t.Fatalf("got %#v, %v, want a hello", m, err)
	}
	addr, done = serveOn(t, p, "web", echoing(9))
	m, _, err := master.Receive(t.Context())
	want := channel.Ready{Version: channel.Version, PID: os.Getpid(), Drain: true, Handoff: true}
	if err != nil || m != want {
		t.Fatalf("got %#v, %v, want %#v", m, err, want)
	}
	return p, master, queue, addr, done
}

func TestWorker_DrainsWhenTheChannelSaysSo(t *testing.T) {
	_, master, _, addr, done := worker(t)
	a := newAsker(dialN(t, addr, 1)[0])
	a.send(t, get)
	a.answer(t)

	rf, sf, err := handoff.NewPair()
	if err != nil {
		t.Fatal(err)
	}
	if err := master.Send(channel.Drain{Deadline: 30 * time.Second, Handoff: true}, sf); err != nil {
		t.Fatal(err)
	}
	_ = sf.Close()
	r, err := handoff.NewReceiver(rf)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	h, err := r.Receive()
	if err != nil || h.Listener != "web" || len(h.Pending) != 0 {
		t.Fatalf("got %+v, %v", h, err)
	}
	_ = h.Close()
	await(t, done)
	var st channel.Status
	for st.Handed == 0 {
		m, _, err := master.Receive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		st, _ = m.(channel.Status)
	}
	if st != (channel.Status{Handed: 1}) {
		t.Errorf("the last status is %+v", st)
	}
}

func TestWorker_StopsWhenTheChannelEnds(t *testing.T) {
	_, master, _, addr, done := worker(t)
	a := newAsker(dialN(t, addr, 1)[0])
	a.send(t, get)
	a.answer(t)
	_ = master.Close()
	await(t, done)
}

func TestWorker_StopShortensADrain(t *testing.T) {
	_, master, _, addr, done := worker(t)
	a := newAsker(dialN(t, addr, 1)[0])
	a.send(t, get)
	a.answer(t)
	for _, d := range []channel.Drain{{}, {Stop: true}} { // the first would wait for ever
		if err := master.Send(d, nil); err != nil {
			t.Fatal(err)
		}
	}
	await(t, done)
}

// Told to drain without a queue, a worker serves what waits in its own.
func TestWorker_EmptiesItsQueueBeforeItStops(t *testing.T) {
	p, master, queue, _, done := worker(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const n = 20
	clients := dialN(t, l.Addr().String(), n)
	for range n {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		rc, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := queue.Send(rc, "web", nil); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	if err := master.Send(channel.Drain{Deadline: 30 * time.Second}, nil); err != nil {
		t.Fatal(err)
	}
	testwait.Until(t, "the server drains", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.servers[0].mode.Load() != modeServing
	})
	for i, c := range clients {
		if _, err := io.WriteString(c, get); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		_ = resp.Body.Close()
		if !resp.Close {
			t.Errorf("connection %d: the answer does not say that it is the last", i)
		}
	}
	await(t, done)
}

func TestWorker_ConnectionsOfOtherListenersAreClosed(t *testing.T) {
	p, _, queue, _, done := worker(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client := dialN(t, l.Addr().String(), 1)[0]
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	rc, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := queue.Send(rc, "admin", nil); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if n, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("got %d bytes, %v", n, err)
	}
	p.orderStop()
	await(t, done)
}

func TestWorker_NotifiesWithoutAChannel(t *testing.T) {
	path := filepath.Join(t.TempDir(), "n")
	pc, err := net.ListenPacket("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	p := newProcess(1, func(k string) (string, bool) { return path, k == envNotify }, func(string) error { return nil })
	t.Cleanup(p.end)
	_, done := serveOn(t, p, "web", echoing(1))
	buf := make([]byte, 100)
	n, _, err := pc.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("got %q, %v", buf[:n], err)
	}
	p.orderStop()
	await(t, done)
}

func TestReady_WaitsForAllListeners(t *testing.T) {
	p := noEnv(t)
	said := func() bool { return closed(p.receive) } // which ready closes where there is no queue
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.listeners = append(p.listeners, &inherited{Listener: l, name: "raw"})
	addr, web := serveOn(t, p, "web", echoing(1))
	a := newAsker(dialN(t, addr, 1)[0])
	a.send(t, get)
	a.answer(t)
	if said() {
		t.Error("ready, with a listener that nobody waits on")
	}
	raw, err := p.listen("raw")
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() { _, err := raw.Accept(); accepted <- err }()
	testwait.Until(t, "the worker is ready", said)
	_ = raw.Close()
	<-accepted
	p.orderStop()
	await(t, web)
}
