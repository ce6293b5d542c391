// Package examples holds programs that use package gapless, and the test that
// runs them.
package examples

import (
	"bufio"
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

	"github.com/coder/websocket"
)

// run starts an example with a socket that it did not open, as a manager does.
func run(t *testing.T, binary string) (addr string, stop func()) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	defer f.Close()
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0"`, binary)
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "LISTEN_FDNAMES=web", "GAPLESS_GENERATION=3")
	cmd.ExtraFiles = []*os.File{f}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		t.Helper()
		stopped = true
		_ = cmd.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		defer late.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v: %s", binary, err, stderr.String())
		}
	}
	t.Cleanup(func() {
		if !stopped {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return l.Addr().String(), stop
}

func TestExamples(t *testing.T) {
	bin := t.TempDir()
	out, err := exec.Command("go", "build", "-o", bin, "./...").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	get := func(t *testing.T, addr string, protocols *http.Protocols) *http.Response {
		t.Helper()
		transport := &http.Transport{Protocols: protocols}
		t.Cleanup(transport.CloseIdleConnections)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	line := func(t *testing.T, r io.Reader, want string) {
		t.Helper()
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			if strings.Contains(lines.Text(), want) {
				return
			}
		}
		t.Fatalf("no line with %q: %v", want, lines.Err())
	}
	for name, visit := range map[string]func(t *testing.T, addr string, stop func()){
		"nethttp": func(t *testing.T, addr string, stop func()) {
			line(t, get(t, addr, nil).Body, "generation 3")
			stop()
		},
		"h2c": func(t *testing.T, addr string, stop func()) {
			h2 := new(http.Protocols)
			h2.SetUnencryptedHTTP2(true)
			line(t, get(t, addr, h2).Body, "HTTP/2.0 from generation 3")
			line(t, get(t, addr, nil).Body, "HTTP/1.1 from generation 3")
			stop()
		},
		"sse": func(t *testing.T, addr string, stop func()) {
			body := get(t, addr, nil).Body
			line(t, body, "data: generation 3")
			stop() // ends the stream
			if _, err := io.ReadAll(body); err != nil {
				t.Errorf("the stream is cut: %v", err)
			}
		},
		"websocket": func(t *testing.T, addr string, stop func()) {
			c, resp, err := websocket.Dial(t.Context(), "ws://"+addr+"/", nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp
			if err := c.Write(t.Context(), websocket.MessageText, []byte("hi")); err != nil {
				t.Fatal(err)
			}
			if _, got, err := c.Read(t.Context()); err != nil || string(got) != "hi" {
				t.Fatalf("got %q, %v", got, err)
			}
			closed := make(chan error, 1)
			go func() {
				_, _, err := c.Read(t.Context())
				closed <- err
			}()
			stop()
			if err := <-closed; websocket.CloseStatus(err) != websocket.StatusServiceRestart {
				t.Errorf("closed with %v", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			addr, stop := run(t, filepath.Join(bin, name))
			visit(t, addr, stop)
		})
	}
}
