package gapless

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestParseTickets(t *testing.T) {
	key := strings.Repeat("A", 43) + "="
	for _, tc := range []struct {
		name, text string
		keys       int
	}{
		{"two", `["` + key + `","` + key + `"]`, 2},
		{"none", `[]`, 0},
		{"short", `["QUJD"]`, 0},
		{"not base64", `["` + strings.Repeat("!", 44) + `"]`, 0},
		{"not a list", `{}`, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			keys, err := parseTickets([]byte(tc.text))
			if len(keys) != tc.keys || (err == nil) != (tc.keys > 0) {
				t.Errorf("got %d keys, %v", len(keys), err)
			}
		})
	}
}

// ring is the file with the keys, as a master keeps it.
type ring struct {
	t    testing.TB
	path string
	keys []string
}

func newRing(t testing.TB) *ring {
	t.Helper()
	r := &ring{t: t, path: filepath.Join(t.TempDir(), "tickets")}
	for range 3 {
		r.keys = append(r.keys, newKey())
	}
	r.write(r.keys)
	return r
}

func newKey() string {
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	return base64.StdEncoding.EncodeToString(key)
}

func (r *ring) write(keys []string) {
	r.t.Helper()
	text, err := json.Marshal(keys)
	if err == nil {
		err = os.WriteFile(r.path, text, 0o600)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *ring) rotate() {
	r.t.Helper()
	r.keys = append([]string{newKey()}, r.keys[:2]...)
	r.write(r.keys)
}

func (r *ring) open() *tickets {
	r.t.Helper()
	f, err := os.Open(r.path)
	if err != nil {
		r.t.Fatal(err)
	}
	t, err := openTickets(f)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = f.Close() })
	return t
}

// session is what a server puts into a ticket.
func session(t *testing.T) *tls.SessionState {
	t.Helper()
	var st *tls.SessionState
	cfg := &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}, MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12}
	cfg.WrapSession = func(cs tls.ConnectionState, s *tls.SessionState) ([]byte, error) {
		st = s
		return cfg.EncryptTicket(cs, s)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	var server sync.WaitGroup
	server.Go(func() { _ = tls.Server(a, cfg).Handshake() })
	client := tls.Client(b, &tls.Config{
		InsecureSkipVerify: true, // the server's own
		ServerName:         "test", MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(1),
	})
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	server.Wait()
	return st
}

// understands says whether to reads a ticket of from.
func understands(t *testing.T, st *tls.SessionState, to, from *tickets) bool {
	t.Helper()
	ticket, err := from.keys.EncryptTicket(tls.ConnectionState{}, st)
	if err != nil {
		t.Fatal(err)
	}
	got, err := to.keys.DecryptTicket(ticket, tls.ConnectionState{})
	if err != nil {
		t.Fatal(err)
	}
	return got != nil
}

func TestTickets_RotatedKeysReachARunningWorker(t *testing.T) {
	st := session(t)
	synctest.Test(t, func(t *testing.T) {
		r := newRing(t)
		worker := r.open()
		ctx, cancel := context.WithCancel(t.Context())
		var loop sync.WaitGroup
		loop.Go(func() { worker.run(ctx) })
		defer loop.Wait()
		defer cancel()

		r.rotate()
		next := r.open() // a worker of the next generation
		if understands(t, st, worker, next) {
			t.Error("a new key is known before anybody has looked for it")
		}
		if !understands(t, st, next, worker) {
			t.Error("the key before is not known any more")
		}
		<-time.After(ticketLook + time.Second)
		synctest.Wait()
		if !understands(t, st, worker, next) || !understands(t, st, next, worker) {
			t.Error("a rotated key has not reached a running worker")
		}
		r.write([]string{"damaged"})
		<-time.After(ticketLook)
		synctest.Wait()
		if !understands(t, st, worker, next) {
			t.Error("damaged keys take the place of those that were known")
		}
	})
}

// secureWorker is a process that serves TLS with the keys of r.
func secureWorker(t *testing.T, r *ring, cfg *tls.Config) (p *process, addr string) {
	t.Helper()
	p = noEnv(t)
	p.tickets = r.open()
	addr, done := serveOn(t, p, "web", &http.Server{Handler: http.NotFoundHandler(), TLSConfig: cfg, ErrorLog: quietLog()})
	t.Cleanup(func() { p.orderStop(); await(t, done) })
	return p, addr
}

// resumes asks over a new connection and says whether the session was resumed.
func resumes(t *testing.T, addr string, cfg *tls.Config) bool {
	t.Helper()
	c, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// A ticket of TLS 1.3 comes with the first answer.
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(c); err != nil || !strings.Contains(string(text), "404") {
		t.Fatalf("got %q, %v", text, err)
	}
	return c.ConnectionState().DidResume
}

func TestServe_SessionsResumeWithEveryWorker(t *testing.T) {
	cert := selfSigned(t)
	plain := func() *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	chooses := func() *tls.Config {
		cfg := plain()
		cfg.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return plain(), nil }
		return cfg
	}
	own := func() *tls.Config {
		cfg, keys := plain(), plain()
		cfg.WrapSession, cfg.UnwrapSession = keys.EncryptTicket, keys.DecryptTicket
		return cfg
	}
	for _, tc := range []struct {
		name    string
		version uint16
		server  func() *tls.Config
		shared  bool // keys are
		rotates bool // in running workers
	}{
		{"TLS 1.3", tls.VersionTLS13, plain, true, true},
		{"TLS 1.2", tls.VersionTLS12, plain, true, true},
		{"GetConfigForClient", tls.VersionTLS13, chooses, true, false},
		{"the program's own", tls.VersionTLS13, own, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRing(t)
			old, first := secureWorker(t, r, tc.server())
			_, second := secureWorker(t, r, tc.server())
			client := func() *tls.Config {
				return &tls.Config{
					InsecureSkipVerify: true, // the server's own, made above
					ServerName:         "test", MinVersion: tc.version, MaxVersion: tc.version, ClientSessionCache: tls.NewLRUClientSessionCache(4),
				}
			}
			c := client()
			if resumes(t, first, c) {
				t.Error("resumed a session that never was")
			}
			if !resumes(t, first, c) {
				t.Error("not resumed by the worker that issued the ticket")
			}
			if got := resumes(t, second, c); got != tc.shared {
				t.Errorf("resumed by another worker: %v, want %v", got, tc.shared)
			}
			if !tc.shared {
				return
			}
			// Over the next generation, whose worker begins with a new key.
			r.rotate()
			_, third := secureWorker(t, r, tc.server())
			if !resumes(t, third, c) {
				t.Error("not resumed by a worker of the next generation")
			}
			fresh := client()
			resumes(t, third, fresh)
			if resumes(t, first, fresh) {
				t.Error("resumed by the old worker, which cannot know the key")
			}
			if err := old.tickets.look(); err != nil { // as it does each minute
				t.Fatal(err)
			}
			fresh = client()
			resumes(t, third, fresh)
			if got := resumes(t, first, fresh); got != tc.rotates {
				t.Errorf("resumed by the old worker when it has looked: %v, want %v", got, tc.rotates)
			}
		})
	}
}

// An HTTP/2 client resumes as well, and with ServeTLS's certificates.
func TestServe_SessionsResumeOverHTTP2(t *testing.T) {
	cert := selfSigned(t)
	r := newRing(t)
	cache := tls.NewLRUClientSessionCache(4)
	for i := range 2 {
		_, addr := secureWorker(t, r, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		transport := &http.Transport{
			ForceAttemptHTTP2: true,
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, ServerName: "test", ClientSessionCache: cache}, // the server's own
		}
		_, resp := fetch(t, &http.Client{Transport: transport}, "https://127.0.0.1:"+port)
		if resp.ProtoMajor != 2 || resp.TLS.DidResume != (i > 0) {
			t.Errorf("worker %d: %s, resumed %v", i, resp.Proto, resp.TLS.DidResume)
		}
		transport.CloseIdleConnections()
	}
}
