package gapless

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gapless/internal/channel"
)

// The bytes that a worker reports grow with what its client takes, and only
// with that.
func TestWorker_ReportsTheBytesThatMove(t *testing.T) {
	file := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(file, make([]byte, 64<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	stream := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for chunk := make([]byte, 32<<10); ; {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	sendfile := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) })
	hijack := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		nc, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer nc.Close()
		for chunk := make([]byte, 32<<10); ; {
			if _, err := nc.Write(chunk); err != nil {
				return
			}
		}
	})
	for _, tc := range []struct {
		name, network string
		handler       http.Handler
	}{
		{"a stream", "tcp", stream}, {"a file", "tcp", sendfile}, {"a hijacked connection", "tcp", hijack},
		{"a unix socket", "unix", stream}, {"a hijacked unix socket", "unix", hijack},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p, master := reporting(t)
			addr := "127.0.0.1:0"
			if tc.network == "unix" {
				addr = filepath.Join(t.TempDir(), "s")
			}
			l, err := net.Listen(tc.network, addr)
			if err != nil {
				t.Fatal(err)
			}
			p.listeners = append(p.listeners, &inherited{Listener: l, name: "web"})
			done := make(chan error, 1)
			go func() { done <- p.serve(&http.Server{Addr: "web", Handler: tc.handler, ErrorLog: quietLog()}) }()
			c, err := net.Dial(tc.network, l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := io.WriteString(c, get); err != nil {
				t.Fatal(err)
			}
			br := bufio.NewReader(c)
			take := func(n int64) {
				t.Helper()
				if _, err := io.CopyN(io.Discard, br, n); err != nil {
					t.Fatal(err)
				}
			}
			take(1 << 20)
			p.orderDrain(order{from: time.Now(), deadline: time.Minute})
			if st := nextStatus(t, master); st.Bytes != 0 {
				t.Errorf("the first report says that %d bytes have moved", st.Bytes)
			}
			take(8 << 20)
			before := nextStatus(t, master)
			if before.Bytes < 4<<20 || before.Connections != 1 {
				t.Errorf("8 MiB taken, and reported is %+v", before)
			}
			// Now the client takes nothing. Buffers fill up, and then nothing moves.
			still := 0
			for last := before.Bytes; still < 2; {
				st := nextStatus(t, master)
				if st.Bytes == last {
					still++
				}
				last = st.Bytes
			}
			_ = c.Close()
			await(t, done)
		})
	}
}

// reporting is a process with a channel and no sockets yet, and its master's
// end.
func reporting(t *testing.T) (*process, *channel.Conn) {
	t.Helper()
	mf, wf, err := channel.Pair()
	if err != nil {
		t.Fatal(err)
	}
	master, err := channel.New(mf)
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{envChannel: rawDup(t, wf)}
	_ = wf.Close()
	p := newProcess(1, func(k string) (string, bool) { v, ok := env[k]; return v, ok },
		func(k string) error { delete(env, k); return nil })
	if p.envErr != nil {
		t.Fatal(p.envErr)
	}
	t.Cleanup(func() { p.end(); _ = master.Close() })
	return p, master
}

func nextStatus(t *testing.T, master *channel.Conn) channel.Status {
	t.Helper()
	for {
		m, _, err := master.Receive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if st, ok := m.(channel.Status); ok {
			return st
		}
	}
}

// A worker tells how old its oldest request is, which may have begun before the drain.
func TestWorker_ReportsTheAgeOfTheOldestRequest(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			p, master := reporting(t)
			addr := "127.0.0.1:0"
			if network == "unix" {
				addr = filepath.Join(t.TempDir(), "s")
			}
			l, err := net.Listen(network, addr)
			if err != nil {
				t.Fatal(err)
			}
			p.listeners = append(p.listeners, &inherited{Listener: l, name: "web"})
			begun, end := make(chan time.Time, 1), make(chan struct{})
			handler := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { begun <- time.Now(); <-end })
			done := make(chan error, 1)
			go func() { done <- p.serve(&http.Server{Addr: "web", Handler: handler, ErrorLog: quietLog()}) }()
			c, err := net.Dial(network, l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := io.WriteString(c, get); err != nil {
				t.Fatal(err)
			}
			at := <-begun
			if network == "tcp" {
				<-time.After(300 * time.Millisecond) // it grows old before anybody asks
			}
			p.orderDrain(order{from: time.Now(), deadline: time.Minute})
			age := func() time.Duration { return time.Duration(nextStatus(t, master).OldestMS) * time.Millisecond }
			first := age()
			if network == "tcp" && first < 250*time.Millisecond {
				t.Errorf("the first report tells of %v, %v after it began", first, time.Since(at))
			}
			second := age()
			if second < first+500*time.Millisecond || second > time.Since(at)+100*time.Millisecond {
				t.Errorf("reported were %v and, %v after it began, %v", first, time.Since(at), second)
			}
			close(end)
			for age() > 0 {
			}
			_ = c.Close()
			await(t, done)
		})
	}
}
