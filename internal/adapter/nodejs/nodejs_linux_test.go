package nodejs_test

import (
	"net"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"gapless/internal/channel"
	"gapless/internal/testwait"
)

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
	testwait.Until(t, "it has printed all", func() bool { return strings.Contains(a.output(), "listens") })
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
			testwait.Until(t, "it says how the two come together", func() bool {
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

// A program that shares its socket among processes of its own gets the socket, and is served as any other.
func TestCluster(t *testing.T) {
	a := launch(t, `
const cluster = require('cluster');
if (cluster.isPrimary) cluster.fork();
else require('http').createServer((req, res) => req.pipe(res)).listen(process.env.PORT);
`, setting{silent: true})
	m, ok := a.hear().(channel.Adapter)
	if !ok || !strings.Contains(m.Reason, "cluster") {
		t.Errorf("got %+v", m)
	}
	a.dial().ask("/0", "hello")
}

// A program that something started which keeps the descriptors to itself is told so.
func TestListen_LostDescriptors(t *testing.T) {
	a := launch(t, strings.Replace(echo, "process.env.PORT", freePort(t), 1), setting{lost: true, silent: true})
	testwait.Until(t, "it says that the sockets did not get through", func() bool {
		return strings.Contains(a.output(), "the sockets did not get through")
	})
}

// Packets that are none are passed over, and what is in them is closed.
func TestReceive_Garbage(t *testing.T) {
	a := launch(t, echo, setting{})
	f, err := a.queue.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rc, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"x", "nonsense", "\x02\x03\x00\x00\x00\x00\x00\x00web", "\x01\x03\x00\x00\x00\x00\x00\x09web", "\x01\xff\x00\x00\xff\xff\xff\xffweb"} {
		var serr error
		if err := rc.Write(func(fd uintptr) bool {
			serr = unix.Sendmsg(int(fd), []byte(p), nil, nil, 0)
			return true
		}); err != nil || serr != nil {
			t.Fatal(err, serr)
		}
	}
	a.foreign("web", "").ask("/0", "goes on")
	if out := a.output(); out != "" {
		t.Errorf("it printed %q", out)
	}
}
