package adapter

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gapless/internal/channel"
	"gapless/internal/handoff"
)

// patience bounds each wait; it only decides how long a failure takes.
const patience = 30 * time.Second

// app answers with what it was asked, and says what it is told of WebSockets.
const app = `
import asyncio, os
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                print("lifespan is over", flush=True)
                return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            await send({"type": "websocket.send", "text": message["text"]})
    path, body, more = scope["path"], b"", True
    while more and path != "/early":
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    if path.startswith("/wait"):
        print("waits", flush=True)
    while path.startswith("/wait") and not os.path.exists(os.environ["TEST_DIR"] + path):
        await asyncio.sleep(0.01)
    if path == "/wait-limit":
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(body), int(body)))
    if path == "/environment":
        child = await asyncio.create_subprocess_exec("/bin/sh", "-c", "env; ls -l /proc/self/fd", stdout=asyncio.subprocess.PIPE)
        body, _ = await child.communicate()
    body = body or b"ok"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
`

// setup is how a worker is started. The zero value: uvicorn, found in PATH, on the socket that it inherits.
type setup struct {
	command []string // of the shell's words {uvicorn} and {python} are replaced
	files   map[string]string
	env     []string
	uid     int
	noKit   bool
}

// worker is a process with the descriptors that gapless gives to each. The test plays the master.
type worker struct {
	t      *testing.T
	cmd    *exec.Cmd
	ch     *channel.Conn
	queue  *handoff.Sender // what it takes connections from
	dir    string
	addr   string
	port   int
	exited chan struct{}
	mu     sync.Mutex
	out    bytes.Buffer
}

func (w *worker) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out.Write(p)
}

func (w *worker) printed() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out.String()
}

// uvicornPath demands uvicorn: where it is missing, nothing of this is tested.
func uvicornPath(t *testing.T) (uvicorn, python string) {
	t.Helper()
	uvicorn, err := exec.LookPath("uvicorn")
	if err != nil {
		t.Fatal("uvicorn IS NOT INSTALLED, so its adapter is not tested: run `make test-deps`")
	}
	text, err := os.ReadFile(uvicorn)
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	python, ok := strings.CutPrefix(strings.TrimSpace(line), "#!")
	if !ok {
		t.Fatalf("%s is no Python script", uvicorn)
	}
	return uvicorn, python
}

func start(t *testing.T, s setup) *worker {
	t.Helper()
	uvicorn, python := uvicornPath(t)
	dir, err := os.MkdirTemp("/tmp", "gapless-adapter-test-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	files := map[string]string{"main.py": app}
	for name, text := range s.files {
		files[name] = text
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w := &worker{t: t, dir: dir, addr: l.Addr().String(), port: l.Addr().(*net.TCPAddr).Port, exited: make(chan struct{})}
	lf, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer lf.Close()
	mine, theirs, err := channel.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	if w.ch, err = channel.New(mine); err != nil {
		t.Fatal(err)
	}
	recv, send, err := handoff.NewPair()
	if err != nil {
		t.Fatal(err)
	}
	defer recv.Close()
	if w.queue, err = handoff.NewSender(send); err != nil {
		t.Fatal(err)
	}

	argv := s.command
	if argv == nil {
		argv = []string{"{uvicorn}", "main:app", "--fd", "3"}
	}
	replace := strings.NewReplacer("{uvicorn}", uvicorn, "{python}", python, "{port}", fmt.Sprint(w.port), "{dir}", dir)
	for i := range argv {
		argv[i] = replace.Replace(argv[i])
	}
	w.cmd = exec.Command(argv[0], argv[1:]...)
	w.cmd.Dir = dir
	w.cmd.Stdout, w.cmd.Stderr = w, w
	w.cmd.ExtraFiles = []*os.File{lf, theirs, recv}
	env := append(os.Environ(), "LISTEN_FDS=1", "LISTEN_FDNAMES=web", "GAPLESS_CHANNEL=4", "GAPLESS_HANDOFF=5", "TEST_DIR="+dir)
	for _, kv := range s.env {
		env = append(env, replace.Replace(kv))
	}
	if !s.noKit {
		var reader *int
		if s.uid != 0 {
			reader = &s.uid
			w.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(s.uid), Gid: uint32(s.uid)}}
		}
		f, err := OpenFolder(os.Getpid(), reader, func(string) string { return dir })
		if err != nil {
			t.Fatal(err)
		}
		if env, err = f.Environ(Uvicorn, env); err != nil {
			t.Fatal(err)
		}
	}
	w.cmd.Env = env
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = w.cmd.Wait() // its status is in ProcessState
		close(w.exited)
	}()
	t.Cleanup(func() {
		_ = w.cmd.Process.Kill()
		<-w.exited
		_ = w.ch.Close()
		_ = w.queue.Close()
		if t.Failed() {
			t.Logf("it wrote:\n%s", w.printed())
		}
	})
	return w
}

// next returns the next message of a kind, which may be a status that something is true of.
func next[M channel.Message](w *worker, is func(M) bool) M {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	for {
		m, f, err := w.ch.Receive(ctx)
		if f != nil {
			f.Close()
		}
		if err != nil {
			var zero M
			w.t.Fatalf("no %T: %v\n%s", zero, err, w.printed())
		}
		if m, ok := m.(M); ok && (is == nil || is(m)) {
			return m
		}
	}
}

// ready waits for the adapter's word and the server's.
func (w *worker) ready() channel.Adapter {
	w.t.Helper()
	a := next[channel.Adapter](w, nil)
	if a.Reason != "" {
		w.t.Fatalf("the adapter is not in force: %s", a.Reason)
	}
	next[channel.Hello](w, nil)
	if r := next[channel.Ready](w, nil); !r.Drain || !r.Handoff || r.PID != w.cmd.Process.Pid {
		w.t.Fatalf("got %+v", r)
	}
	return a
}

// ends waits for the process's end.
func (w *worker) ends() *os.ProcessState {
	w.t.Helper()
	select {
	case <-w.exited:
	case <-time.After(patience):
		w.t.Fatalf("it has not ended\n%s", w.printed())
	}
	return w.cmd.ProcessState
}

// lives checks that it goes on.
func (w *worker) lives() {
	w.t.Helper()
	select {
	case <-w.exited:
		w.t.Fatalf("it has ended: %v", w.cmd.ProcessState)
	default:
	}
}

// drain gives the order, with a queue whose receiving end is returned.
func (w *worker) drain(d channel.Drain) *handoff.Receiver {
	w.t.Helper()
	if !d.Handoff {
		if err := w.ch.Send(d, nil); err != nil {
			w.t.Fatal(err)
		}
		return nil
	}
	recv, send, err := handoff.NewPair()
	if err != nil {
		w.t.Fatal(err)
	}
	r, err := handoff.NewReceiver(recv)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = r.Close() })
	if err := errors.Join(w.ch.Send(d, send), send.Close()); err != nil {
		w.t.Fatal(err)
	}
	return r
}

// release has the requests for a path that begins with /wait answered.
func (w *worker) release(path string) {
	w.t.Helper()
	if err := os.WriteFile(w.dir+path, nil, 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// conn is a client's connection.
type conn struct {
	net.Conn
	t *testing.T
	r *bufio.Reader
}

func dial(t *testing.T, addr string) *conn {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(patience))
	return &conn{nc, t, bufio.NewReader(nc)}
}

func (c *conn) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Fatal(err)
	}
}

func post(path, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
}

// answered reads a response and demands its body; it returns whether the response says that it is the last.
func (c *conn) answered(body string) (last bool) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.t.Fatalf("no response: %v", err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil || string(got) != body || resp.StatusCode != http.StatusOK {
		c.t.Fatalf("got %d %q, %v, want %q", resp.StatusCode, got, err, body)
	}
	return resp.Close
}

// ended demands that the server has closed the connection in order.
func (c *conn) ended() {
	c.t.Helper()
	if b, err := c.r.ReadByte(); err != io.EOF {
		c.t.Fatalf("got %q, %v, want the end", b, err)
	}
}

// take receives a connection that the worker has given away.
func take(t *testing.T, r *handoff.Receiver) *handoff.Conn {
	t.Helper()
	_ = r.SetReadDeadline(time.Now().Add(patience))
	c, err := r.Receive()
	if err != nil {
		t.Fatalf("no connection came: %v", err)
	}
	if c.Listener != "web" {
		t.Errorf("it came from %q", c.Listener)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// none demands that no connection is in the queue.
func none(t *testing.T, r *handoff.Receiver) {
	t.Helper()
	if c, err := r.TryReceive(); !errors.Is(err, handoff.ErrEmpty) {
		t.Fatalf("got %+v, %v, want none", c, err)
	}
}

// put gives the server's end of a connection to a worker through its queue.
func put(t *testing.T, w *worker, listener, pending string) *conn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := dial(t, l.Addr().String())
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	rc, err := theirs.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.queue.Send(rc, listener, []byte(pending)); err != nil {
		t.Fatal(err)
	}
	return c
}

// servedBy serves a connection that was given away, once, as its new owner. It may run in a goroutine.
func servedBy(t *testing.T, c *handoff.Conn) {
	nc, err := c.NetConn()
	if err != nil {
		t.Error(err)
		return
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(patience))
	req, err := http.ReadRequest(bufio.NewReader(io.MultiReader(bytes.NewReader(c.Pending), nc)))
	if err != nil {
		t.Errorf("no request behind %q: %v", c.Pending, err)
		return
	}
	body, err := io.ReadAll(req.Body)
	text := "new " + string(body)
	if err == nil {
		_, err = fmt.Fprintf(nc, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
	}
	if err != nil {
		t.Error(err)
	}
}

// certificate returns a certificate for nobody in particular, and its key.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, data []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data}))
	}
	return encode("CERTIFICATE", der), encode("PRIVATE KEY", secret)
}
