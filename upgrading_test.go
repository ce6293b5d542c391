package gapless

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"

	"gapless/internal/testwait"
)

// A client that asks with each request to upgrade the connection is told that the server goes by whatever answer is not the
// upgrade; that one is left as the program makes it.
func TestDrain_ToldByTheAnswerToARefusedUpgrade(t *testing.T) {
	for _, tc := range []struct {
		name    string
		handler http.HandlerFunc
		status  string
		upgrade bool
	}{
		{"nothing written", func(http.ResponseWriter, *http.Request) {}, "200", false},
		{"only a body", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hi") }, "200", false},
		{"a body from a reader", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.Copy(w, strings.NewReader("hi")) }, "200", false},
		{"flushed first", func(w http.ResponseWriter, _ *http.Request) { _ = http.NewResponseController(w).Flush() }, "200", false},
		{"refused", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "Upgrade")
			w.WriteHeader(http.StatusUpgradeRequired)
		}, "426", false},
		{"agreed, then hijacked", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "raw")
			w.WriteHeader(http.StatusSwitchingProtocols)
			nc, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_ = nc.Close()
			}
		}, "101", true},
		{"hijacked, then agreed", func(w http.ResponseWriter, _ *http.Request) {
			h, ok := w.(http.Hijacker)
			if !ok {
				return
			}
			nc, _, err := h.Hijack()
			if err == nil {
				_, _ = io.WriteString(nc, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n")
				_ = nc.Close()
			}
		}, "101", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := noEnv(t)
			addr, done := serveOn(t, p, "web", &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/first" {
					tc.handler(w, r)
				}
			})})
			c := dialN(t, addr, 1)[0]
			in := bufio.NewReader(c)
			ask := func(path string) *http.Response {
				t.Helper()
				_, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n")
				if err != nil {
					t.Fatal(err)
				}
				res, err := http.ReadResponse(in, nil)
				if err != nil {
					t.Fatal(err)
				}
				return res
			}
			if res := ask("/first"); res.Close {
				t.Fatalf("before: %v", res.Header)
			}
			p.orderStop()
			testwait.Until(t, "the server drains", func() bool { return p.servers[0].mode.Load() != modeServing })
			res := ask("/")
			_, err := io.Copy(io.Discard, res.Body)
			if res.Close == tc.upgrade || !strings.HasPrefix(res.Status, tc.status) || err != nil {
				t.Errorf("draining: %s, close %v, %v, %v", res.Status, res.Close, res.Header, err)
			}
			if n, err := in.Read(make([]byte, 1)); n > 0 || err != io.EOF {
				t.Errorf("after: %d bytes, %v", n, err)
			}
			await(t, done)
		})
	}
}
