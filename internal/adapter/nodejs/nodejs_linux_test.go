package nodejs_test

import (
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gapless/internal/channel"
	"gapless/internal/handoff"
)

const minute = time.Minute

// Idle connections leave, those in a request once it is answered; what a client sends meanwhile waits in the kernel.
func TestDrain_GivesConnectionsAwayBetweenRequests(t *testing.T) {
	a := launch(t, echo, setting{})
	fresh, idle, slow := a.dial(), a.dial(), a.dial()
	idle.ask("/0", "one")
	slow.send(request("/300", "slow"))
	a.dial().ask("/0", "they have been accepted")

	r := a.order(channel.Drain{Deadline: minute, Handoff: true})
	var given []*handoff.Conn
	for range 3 {
		given = append(given, a.take(r))
	}
	slow.answer("slow")
	given = append(given, a.take(r))
	if status := a.exits(); status != 0 {
		t.Errorf("status %d", status)
	}
	// They all live: nobody serves them, and nothing was lost of what is sent.
	want := map[string]*client{}
	for _, c := range []*client{fresh, idle, slow} {
		want[c.LocalAddr().String()] = c
	}
	for _, h := range given {
		if h.Listener != "web" || len(h.Pending) != 0 {
			t.Errorf("listener %q with %d bytes", h.Listener, len(h.Pending))
		}
		nc, err := h.NetConn()
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		c := want[nc.RemoteAddr().String()]
		if c == nil {
			continue
		}
		delete(want, nc.RemoteAddr().String())
		c.send("next")
		got := make([]byte, 4)
		if _, err := nc.Read(got); err != nil || string(got) != "next" {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if len(want) != 0 {
		t.Errorf("%d connections were not given away", len(want))
	}
}

// A request of which a part was read is finished here.
func TestDrain_KeepsAConnectionInTheMiddleOfAHead(t *testing.T) {
	a := launch(t, echo, setting{})
	c := a.dial()
	c.ask("/0", "one")
	text := request("/0", "two")
	c.send(text[:30])
	a.dial().ask("/0", "so that it has been read")
	r := a.order(channel.Drain{Deadline: minute, Handoff: true})
	other := a.take(r) // the other one leaves at once
	_ = other.Close()
	c.send(text[30:])
	c.answer("two")
	_ = a.take(r).Close()
	a.exits()
}

// What comes from another worker is served, also with what that one has read ahead, and with the client's own address.
func TestReceive(t *testing.T) {
	for name, tc := range map[string]struct{ pending, sent string }{
		"nothing read":  {"", request("/0", "hello")},
		"part of it":    {request("/0", "hello")[:20], request("/0", "hello")[20:]},
		"all of it":     {request("/0", "hello"), ""},
		"an empty line": {"", "\r\n" + request("/0", "hello")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := launch(t, echo, setting{})
			client := a.foreign("web", tc.pending)
			client.send(tc.sent)
			if client.answer("hello") {
				t.Error("the answer is its connection's last")
			}
			client.ask("/0", "again")
		})
	}
}

// foreign hands the app a connection that another worker has accepted.
func (a *app) foreign(listener, pending string) *client {
	a.t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		a.t.Fatal(err)
	}
	defer l.Close()
	own := a.addr
	a.addr = l.Addr().String()
	c := a.dial()
	a.addr = own
	nc, err := l.Accept()
	if err != nil {
		a.t.Fatal(err)
	}
	defer nc.Close()
	rc, err := nc.(*net.TCPConn).SyscallConn()
	if err != nil {
		a.t.Fatal(err)
	}
	if err := a.queue.Send(rc, listener, []byte(pending)); err != nil {
		a.t.Fatal(err)
	}
	return c
}

// A connection for a listener that the app does not serve is closed and not served as something else.
func TestReceive_UnknownListener(t *testing.T) {
	a := launch(t, echo, setting{})
	a.foreign("admin", "").ended()
	a.foreign("web", "").ask("/0", "goes on")
}

// A connection that has come and not been used since leaves again, and ends after the server's keep-alive time.
func TestReceive_Unused(t *testing.T) {
	t.Run("leaves again", func(t *testing.T) {
		a := launch(t, echo, setting{})
		c := a.foreign("web", "")
		a.foreign("web", "").ask("/0", "both have come")
		r := a.order(channel.Drain{Deadline: minute, Handoff: true})
		ports := map[string]bool{}
		for range 2 {
			nc, err := a.take(r).NetConn()
			if err != nil {
				t.Fatal(err)
			}
			ports[nc.RemoteAddr().String()] = true
			nc.Close()
		}
		if !ports[c.LocalAddr().String()] {
			t.Error("it was not given away")
		}
		a.exits()
	})
	t.Run("ends", func(t *testing.T) {
		a := launch(t, strings.Replace(echo, "server.listen", "server.keepAliveTimeout = 200; server.listen", 1), setting{})
		a.foreign("web", "").ended()
	})
}

// Where nobody takes connections, each gets one more answer, which says that it is the last.
func TestDrain_WithoutAQueue(t *testing.T) {
	a := launch(t, echo, setting{})
	idle, slow, waits := a.dial(), a.dial(), a.foreign("web", "")
	idle.ask("/0", "one")
	slow.send(request("/200", "slow"))
	a.dial().ask("/0", "all accepted")
	a.order(channel.Drain{Deadline: minute})
	a.waitDraining()
	for _, c := range []*client{idle, waits} {
		if !c.ask("/0", "two") {
			t.Error("the answer does not close its connection")
		}
		c.ended()
	}
	if !slow.answer("slow") {
		t.Error("the answer in progress does not close its connection")
	}
	slow.ended()
}

// waitDraining waits for the first report of a drain.
func (a *app) waitDraining() channel.Status {
	a.t.Helper()
	st, ok := a.hear().(channel.Status)
	if !ok {
		a.t.Fatal("no status")
	}
	return st
}

// A full stop waits a second for idle connections; the end of the channel is one.
func TestDrain_Stop(t *testing.T) {
	for name, stop := range map[string]func(*app){
		"order":              func(a *app) { a.order(channel.Drain{Deadline: minute, Stop: true}) },
		"end of the channel": func(a *app) { _ = a.master.Close() },
		"order after order": func(a *app) {
			a.order(channel.Drain{Deadline: minute})
			a.order(channel.Drain{Stop: true})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := launch(t, echo, setting{})
			idle := a.dial()
			idle.ask("/0", "one")
			slow := a.dial()
			slow.send(request("/2000", "longer than the second"))
			a.dial().ask("/0", "all accepted")
			stop(a)
			idle.ended()
			slow.answer("longer than the second")
			if status := a.exits(); status != 0 {
				t.Errorf("status %d", status)
			}
		})
	}
}

// A queue that is full, or whose reader has gone, costs nothing: what cannot leave is served, and leaves later if it can.
func TestDrain_QueueThatTakesNothing(t *testing.T) {
	fill := func(t *testing.T, sf *handoff.Sender) (n int) {
		t.Helper()
		_, w, err := handoff.NewPair()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		rc, err := w.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		for sf.Send(rc, "fill", make([]byte, handoff.MaxPending)) == nil {
			n++
		}
		for sf.Send(rc, "fill", nil) == nil {
			n++
		}
		return n
	}
	const clients = 8
	setup := func(t *testing.T) (*app, []*client, *handoff.Receiver, *handoff.Sender) {
		t.Helper()
		a := launch(t, echo, setting{})
		var cs []*client
		for range clients {
			c := a.dial()
			c.ask("/0", "one")
			cs = append(cs, c)
		}
		rf, sf, err := handoff.NewPair()
		if err != nil {
			t.Fatal(err)
		}
		r, err := handoff.NewReceiver(rf)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		// The same open file, for the test to fill.
		s, err := handoff.NewSender(sf)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return a, cs, r, s
	}
	order := func(t *testing.T, a *app, s *handoff.Sender) {
		t.Helper()
		f, err := s.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := a.master.Send(channel.Drain{Deadline: minute, Handoff: true}, f); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("full for a while", func(t *testing.T) {
		a, cs, r, s := setup(t)
		n := fill(t, s)
		order(t, a, s)
		a.waitDraining()
		for range n {
			_ = a.take(r).Close()
		}
		for range cs {
			if c := a.take(r); c.Listener != "web" {
				t.Errorf("got one of %q", c.Listener)
			} else {
				_ = c.Close()
			}
		}
		a.exits()
	})
	t.Run("full for ever", func(t *testing.T) {
		a, cs, _, s := setup(t)
		fill(t, s)
		order(t, a, s)
		a.waitDraining()
		for _, c := range cs {
			if !c.ask("/0", "two") { // all are served: the one that waits in the full queue, too
				c.ask("/0", "three")
			}
		}
		if !strings.Contains(a.output(), "the queue has had no room") {
			t.Error("nothing was logged")
		}
	})
	t.Run("nobody reads", func(t *testing.T) {
		a, cs, r, s := setup(t)
		_ = r.Close()
		order(t, a, s)
		a.waitDraining()
		for range 3 {
			for _, c := range cs {
				c.ask("/0", "two")
			}
		}
	})
}

// The kernel's limit on descriptors in flight is that on open files, for all but the mighty. A connection that it keeps
// from leaving is served on.
func TestDrain_TooManyDescriptorsInFlight(t *testing.T) {
	a := launch(t, echo, setting{common: true})
	var cs []*client
	for range 8 {
		c := a.dial()
		c.send(request("/500", "slow"))
		cs = append(cs, c)
	}
	a.dial().ask("/0", "all accepted")
	r := a.order(channel.Drain{Deadline: minute, Handoff: true})
	_ = a.take(r).Close()
	a.waitDraining()
	a.setNoFile(1)
	for _, c := range cs {
		c.answer("slow")
	}
	for _, c := range cs { // some may wait in the queue
		c.send(request("/0", "two"))
	}
	served := 0
	for _, c := range cs {
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := c.r.Peek(1); err == nil {
			c.answer("two")
			served++
		}
	}
	if served == 0 {
		t.Errorf("%d of %d were served on", served, len(cs))
	}
	a.setNoFile(1024)
	for range cs {
		_ = a.take(r).Close()
	}
	a.exits()
}

func (a *app) setNoFile(n uint64) {
	a.t.Helper()
	if err := unix.Prlimit(a.cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: 1024}, nil); err != nil {
		a.t.Fatal(err)
	}
}

// The program's own handlers run, when every request has been answered.
func TestDrain_OwnHandlers(t *testing.T) {
	for name, handler := range map[string]string{
		"close":           `server.close((err) => { if (err) process.exitCode = 1; console.log('closed') })`,
		"close and exit":  `server.close((err) => { console.log('closed'); process.exit(err ? 1 : 0) })`,
		"exit":            `console.log('closed'); process.exit(0)`,
		"asynchronous":    `await new Promise((ok, no) => server.close((err) => err ? no(err) : ok())); console.log('closed'); process.exit(0)`,
		"close all":       `server.close(() => console.log('closed')); server.closeAllConnections()`,
		"exit at once":    `server.close(); console.log('closed'); process.exit(0)`,
		"signal and code": `(signal, n) => { if (signal === 'SIGTERM' && n === 15) server.close(() => console.log('closed')) }`,
	} {
		for _, queue := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, queue %t", name, queue), func(t *testing.T) {
				t.Parallel()
				f := handler
				if !strings.HasPrefix(f, "(") {
					f = "async () => {" + f + "}"
				}
				a := launch(t, echo+"process.on('SIGTERM', "+f+");", setting{})
				idle, slow := a.dial(), a.dial()
				idle.ask("/0", "one")
				slow.send(request("/300", "slow"))
				a.dial().ask("/0", "all accepted")
				r := a.order(channel.Drain{Deadline: minute, Handoff: queue, Stop: !queue})
				if queue {
					_ = a.take(r).Close()
					_ = a.take(r).Close()
				}
				slow.answer("slow")
				if queue {
					_ = a.take(r).Close()
				}
				if status := a.exits(); status != 0 {
					t.Errorf("status %d", status)
				}
				if got := a.output(); got != "closed\n" {
					t.Errorf("it printed %q", got)
				}
			})
		}
	}
}

// The program and its children see nothing of the adapter.
func TestHidden(t *testing.T) {
	a := launch(t, `
const { execFileSync } = require('child_process');
const { Worker } = require('worker_threads');
const fds = execFileSync('ls', ['-l', '/proc/self/fd']).toString();
console.log('sockets in a child:', (fds.match(/ ([3-9]|[0-9][0-9]+) -> socket:/g) || []).length);
console.log('variables in a child:', execFileSync('env').toString().split('\n').filter((v) => /^GAPLESS_(CHANNEL|HANDOFF|TICKETS)/.test(v)).join());
console.log('options in a child:', execFileSync('sh', ['-c', 'echo $NODE_OPTIONS']).toString().trim());
console.log('ipc:', typeof process.send, process.channel, process.listenerCount('message'), process.listenerCount('SIGTERM'));
new Worker('console.log("a thread")', { eval: true }).on('exit', () => {
  require('http').createServer((req, res) => res.end()).listen(+process.env.PORT, '127.0.0.1', 511, () => console.log('listens'));
});
`, setting{})
	eventually(t, "it has printed all", func() bool { return strings.Contains(a.output(), "listens") })
	want := []string{"sockets in a child: 0", "variables in a child: ", "options in a child: --no-warnings", "ipc: undefined undefined 0 0", "a thread", "listens"}
	if got := lines(a.output()); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A program that has its server closed by itself ends as it would alone: nothing of the adapter keeps it alive.
func TestHidden_DoesNotKeepTheProgramAlive(t *testing.T) {
	a := launch(t, echo+"setImmediate(() => server.once('listening', () => 0) && setTimeout(() => server.close(), 100));", setting{})
	if status := a.exits(); status != 0 {
		t.Errorf("status %d", status)
	}
}

// Which sockets a listen takes.
func TestListen(t *testing.T) {
	other := freePort(t)
	for name, tc := range map[string]struct {
		listen string
		env    string
		takes  bool
	}{
		"$PORT is set for it":     {"listen(process.env.PORT || 3000)", "", true},
		"an options object":       {"listen({port: process.env.PORT, host: '127.0.0.1', backlog: 9})", "", true},
		"the descriptor":          {"listen({fd: 3})", "", true},
		"the user's $PORT":        {"listen(process.env.PORT)", "PORT=" + other, true},
		"a port of its own":       {"listen(" + other + ")", "", false},
		"any port":                {"listen(0)", "", false},
		"the second server of it": {"listen(0); require('http').createServer((req, res) => req.pipe(res)).listen(+process.env.PORT)", "", true},
	} {
		t.Run(name, func(t *testing.T) {
			var env []string
			if tc.env != "" {
				env = append(env, tc.env)
			}
			a := launch(t, "require('http').createServer((req, res) => req.pipe(res))."+tc.listen, setting{env: env, silent: !tc.takes})
			if tc.takes {
				a.dial().ask("/0", "hello")
				return
			}
			if name == "any port" {
				return
			}
			eventually(t, "it says how the two come together", func() bool {
				return strings.Contains(a.output(), "this program listens on port "+other+" and gapless on ")
			})
		})
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// npm and its like pass their first three descriptors on and no more, unless they are helped.
func TestWrapper(t *testing.T) {
	a := launch(t, echo, setting{args: []string{"npm-cli.js", "start"}, files: map[string]string{"npm-cli.js": `
const { spawn } = require('child_process');
const child = spawn('sh', ['-c', 'node server.js'], { stdio: 'inherit' });
child.on('exit', (code) => process.exit(code));
`}})
	c := a.dial()
	c.ask("/0", "hello")
	r := a.order(channel.Drain{Deadline: minute, Handoff: true})
	_ = a.take(r).Close()
	if status := a.exits(); status != 0 {
		t.Errorf("status %d", status)
	}
}

// WebSockets stay until shortly before the deadline, and are told why they end.
func TestDrain_WebSockets(t *testing.T) {
	a := launch(t, echo+`
server.on('upgrade', (req, socket, head) => {
  socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n');
  socket.on('data', (d) => socket.write(d));
  socket.on('error', () => {});
});
`, setting{})
	c := a.dial()
	c.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	for line := ""; line != "\r\n"; {
		var err error
		if line, err = c.r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	a.order(channel.Drain{Deadline: 4 * time.Second, Handoff: true})
	st := a.waitDraining()
	if st.Connections != 1 || st.InFlight != 0 {
		t.Errorf("the status is %+v", st)
	}
	c.send("still")
	got := make([]byte, 5+4)
	for n := 0; n < len(got); {
		m, err := c.r.Read(got[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
	if string(got) != "still\x88\x02\x03\xf4" {
		t.Errorf("got %q", got)
	}
	_ = c.Close()
	a.exits()
}

// Event streams have no end: on a full stop the program's handlers do not wait for them, in an upgrade they do.
func TestDrain_EventStreams(t *testing.T) {
	const script = `
const server = require('http').createServer((req, res) => {
  res.writeHead(200, { 'Content-Type': 'text/event-stream' });
  res.write('data: 1\n\n');
  process.on('gapless:drain', ({ stop }) => { console.log('told', stop); if (req.url === '/ends') res.end(); });
});
server.listen(process.env.PORT);
process.on('SIGTERM', () => { console.log('closed'); process.exit(0); });
`
	open := func(a *app, path string) *client {
		c := a.dial()
		c.send("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := c.r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		return c
	}
	t.Run("stop", func(t *testing.T) {
		a := launch(t, script, setting{})
		open(a, "/")
		a.order(channel.Drain{Deadline: minute, Stop: true})
		if status := a.exits(); status != 0 || a.output() != "told true\nclosed\n" {
			t.Errorf("status %d, %q", status, a.output())
		}
	})
	t.Run("ended by the program", func(t *testing.T) {
		a := launch(t, script, setting{})
		open(a, "/ends")
		r := a.order(channel.Drain{Deadline: minute, Handoff: true})
		_ = a.take(r).Close()
		if status := a.exits(); status != 0 || a.output() != "told false\nclosed\n" {
			t.Errorf("status %d, %q", status, a.output())
		}
	})
}

// What is reported while it drains.
func TestDrain_Status(t *testing.T) {
	a := launch(t, echo, setting{})
	slow := a.dial()
	slow.send(request("/1500", strings.Repeat("x", 1000)))
	a.dial().ask("/0", "all accepted")
	r := a.order(channel.Drain{Deadline: minute, Handoff: true})
	if st := a.waitDraining(); st.InFlight != 1 || st.Connections != 2 || st.Handed != 0 || st.Bytes != 0 {
		t.Errorf("at first %+v", st)
	}
	_ = a.take(r).Close()
	if st := a.waitDraining(); st.InFlight != 1 || st.Connections != 1 || st.Handed != 1 {
		t.Errorf("then %+v", st)
	}
	slow.answer(strings.Repeat("x", 1000))
	_ = a.take(r).Close()
	if st := a.waitDraining(); st.InFlight != 0 || st.Connections != 0 || st.Handed != 2 || st.Bytes < 1000 {
		t.Errorf("at last %+v", st)
	}
	a.exits()
}

// A worker that is short of descriptors leaves in the queue what it could not take, and takes it later.
func TestReceive_ShortOfDescriptors(t *testing.T) {
	a := launch(t, echo, setting{})
	a.setNoFile(60)
	first := a.foreign("web", "") // after this packet it looks
	first.ask("/0", "taken")
	var waiting []*client
	for range 40 {
		waiting = append(waiting, a.foreign("web", ""))
	}
	a.setNoFile(1024)
	for _, c := range waiting {
		c.ask("/0", "hello")
	}
}

// The usual handler runs as it always did when somebody sends the signal himself.
func TestSignal_OfSomebodyElse(t *testing.T) {
	a := launch(t, echo+"process.on('SIGTERM', () => server.close(() => console.log('closed')));", setting{})
	a.dial().ask("/0", "one")
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := a.exits(); status != 0 || a.output() != "closed\n" {
		t.Errorf("status %d, %q", status, a.output())
	}
}
