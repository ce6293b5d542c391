package nodejs_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gapless/internal/adapter/nodejs"
	"gapless/internal/channel"
	"gapless/internal/handoff"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds waits for what should happen soon; it only decides how long a failure takes.
const patience = 30 * time.Second

// app is a program of node with the adapter, whose master is the test.
type app struct {
	t       *testing.T
	dir     string
	addr    string
	network string
	cmd     *exec.Cmd
	exited  chan struct{}
	master  *channel.Conn
	queue   *handoff.Sender // to its own queue
}

type setting struct {
	args   []string // instead of server.js
	files  map[string]string
	env    []string
	silent bool // it will not say that it is ready
	common bool // it has no privileges
	unix   bool // its socket is a unix one
	tls    bool // it takes no connections
	lost   bool // what started it did not pass the descriptors on
}

const sockets = 1 // that each app inherits, called "web"

// echo answers with what was sent, after the milliseconds in the path.
const echo = `
const http = require('http');
const server = http.createServer((req, res) => {
  setTimeout(() => req.pipe(res), Number(req.url.slice(1)));
});
server.listen(process.env.PORT);
`

// launch runs script; it returns when it has said that it is ready.
func launch(t *testing.T, script string, with setting) *app {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatal("node IS NOT INSTALLED, so what is promised about it is not tested: run `make test-deps`")
	}
	a := &app{t: t, dir: t.TempDir(), exited: make(chan struct{})}
	entries, err := nodejs.Files.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"server.js": script}
	for _, e := range entries {
		text, err := nodejs.Files.ReadFile(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		files[filepath.Join("adapter", e.Name())] = string(text)
	}
	for name, text := range with.files {
		files[name] = text
	}
	for name, text := range files {
		path := filepath.Join(a.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}

	a.network = "tcp4"
	at := "127.0.0.1:0"
	if with.unix {
		a.network, at = "unix", filepath.Join(a.dir, ".0123abcd")
	}
	l, err := net.Listen(a.network, at)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a.addr = l.Addr().String()
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
		a.addr = filepath.Join(a.dir, "socket") // it is renamed, as gapless does to replace a file that is there
		if err := os.Rename(at, a.addr); err != nil {
			t.Fatal(err)
		}
	}
	lf, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	mf, wf, err := channel.Pair()
	if err != nil {
		t.Fatal(err)
	}
	rf, sf, err := handoff.NewPair()
	if err != nil {
		t.Fatal(err)
	}
	if a.master, err = channel.New(mf); err != nil {
		t.Fatal(err)
	}
	if a.queue, err = handoff.NewSender(sf); err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(a.dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	args := with.args
	if args == nil {
		args = []string{"server.js"}
	}
	args = append([]string{node}, args...)
	if with.common {
		args = append([]string{"setpriv", "--bounding-set=-sys_admin,-sys_resource", "--inh-caps=-sys_admin,-sys_resource"}, args...)
	}
	a.cmd = exec.Command(args[0], args[1:]...)
	a.cmd.Dir, a.cmd.Stdout, a.cmd.Stderr = a.dir, out, out
	if !with.lost {
		a.cmd.ExtraFiles = []*os.File{lf, wf, rf}
	}
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	a.cmd.Env = append(os.Environ(), "NODE_OPTIONS=--no-warnings --require="+filepath.Join(a.dir, "adapter", nodejs.Main), "PORT=",
		fmt.Sprintf("LISTEN_FDS=%d", sockets), "LISTEN_FDNAMES=web", "GAPLESS_CHANNEL=4", "GAPLESS_HANDOFF=5", "GAPLESS_GENERATION=1")
	a.cmd.Env = append(a.cmd.Env, with.env...)
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{lf, wf, rf, out} {
		f.Close()
	}
	go func() {
		_ = a.cmd.Wait() // the status is in ProcessState
		close(a.exited)
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-a.cmd.Process.Pid, syscall.SIGKILL)
		<-a.exited
		_ = a.master.Close()
		_ = a.queue.Close()
		if t.Failed() {
			t.Logf("what node wrote:\n%s", a.output())
		}
	})
	if with.silent {
		return a
	}
	if m, ok := a.hear().(channel.Adapter); !ok || !strings.HasPrefix(m.Name, "node ") || m.Reason != "" {
		t.Fatalf("the first word is %+v, and not that the adapter is in force", m)
	}
	hello, ok := a.hear().(channel.Hello)
	if !ok || hello.Version != channel.Version {
		t.Fatalf("the second word is %+v", hello)
	}
	if m, ok := a.hear().(channel.Ready); !ok || !m.Drain || m.Handoff == with.tls {
		t.Fatalf("the third word is %+v, and not that it is ready, drains and takes connections", m)
	}
	return a
}

func (a *app) output() string {
	text, _ := os.ReadFile(filepath.Join(a.dir, "out"))
	return string(text)
}

// hear returns what the app says next.
func (a *app) hear() channel.Message {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), patience)
	defer cancel()
	m, f, err := a.master.Receive(ctx)
	if f != nil {
		f.Close()
	}
	if err != nil {
		a.t.Fatalf("wait for a word: %v", err)
	}
	return m
}

// order tells the app to drain; where d says so, it gets the queue that is returned.
func (a *app) order(d channel.Drain) *handoff.Receiver {
	a.t.Helper()
	if !d.Handoff {
		if err := a.master.Send(d, nil); err != nil {
			a.t.Fatal(err)
		}
		return nil
	}
	rf, sf, err := handoff.NewPair()
	if err != nil {
		a.t.Fatal(err)
	}
	if err := a.master.Send(d, sf); err != nil {
		a.t.Fatal(err)
	}
	sf.Close()
	r, err := handoff.NewReceiver(rf)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { _ = r.Close() })
	return r
}

// take takes a connection out of a queue.
func (a *app) take(r *handoff.Receiver) *handoff.Conn {
	a.t.Helper()
	_ = r.SetReadDeadline(time.Now().Add(patience))
	c, err := r.Receive()
	if err != nil {
		a.t.Fatalf("no connection has come: %v", err)
	}
	return c
}

// exits waits for the app's end and returns its status.
func (a *app) exits() int {
	a.t.Helper()
	select {
	case <-a.exited:
	case <-time.After(patience):
		a.t.Fatal("node has not ended")
	}
	return a.cmd.ProcessState.ExitCode()
}

// client is one kept-alive connection.
type client struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func (a *app) dial() *client {
	a.t.Helper()
	c, err := net.Dial(a.network, a.addr)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return &client{a.t, c, bufio.NewReader(c)}
}

func request(path, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
}

func (c *client) send(text string) {
	c.t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		c.t.Fatal(err)
	}
}

// answer reads one response, which is to hold what was sent, and tells whether it is the last.
func (c *client) answer(want string) (last bool) {
	c.t.Helper()
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.t.Fatalf("no answer: %v", err)
	}
	got, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || string(got) != want || res.StatusCode != http.StatusOK {
		c.t.Fatalf("got %d %q, %v, want %q", res.StatusCode, got, err, want)
	}
	return res.Close
}

func (c *client) ask(path, body string) (last bool) {
	c.t.Helper()
	c.send(request(path, body))
	return c.answer(body)
}

// ended waits for the connection's end.
func (c *client) ended() {
	c.t.Helper()
	if b, err := c.r.ReadByte(); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		c.t.Fatalf("got %q, %v, want the end", b, err)
	}
}

func lines(text string) []string { return strings.Split(strings.TrimSpace(text), "\n") }
