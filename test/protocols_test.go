//go:build linux

package test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// secureServer runs the role secure, and returns what its clients need.
func secureServer(t *testing.T, flags ...string) (*server, *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(cert)
	s := start(t, options{flags: flags, command: role("secure"), env: []string{
		"E2E_CERT=" + string(cert), "E2E_KEY=" + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})),
	}})
	return s, &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
}

// tally counts answers by generation.
type tally struct {
	mu sync.Mutex
	by map[string]int
}

func (c *tally) add(generation string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == nil {
		c.by = map[string]int{}
	}
	c.by[generation]++
}

// An HTTP/2 client loses no request, whatever streams it has open at an upgrade.
func TestHTTP2_NoRequestIsLost(t *testing.T) {
	s, cfg := secureServer(t)
	n := counted(5, 20)
	var count tally
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for i := range 4 {
		transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: cfg.Clone()}
		defer transport.CloseIdleConnections()
		c := &http.Client{Transport: transport, Timeout: patience}
		for j := range 6 { // streams of one connection
			wg.Go(func() {
				for k := 0; ; k++ {
					select {
					case <-stop:
						return
					case <-time.After(10 * time.Millisecond):
					}
					want := fmt.Sprintf("%d %d %d", i, j, k)
					resp, err := c.Post(fmt.Sprintf("https://%s/?ms=%d", s.addr, 10*j), "text/plain", strings.NewReader(want))
					if err != nil {
						t.Errorf("a request was lost: %v", err)
						return
					}
					got, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if err != nil || string(got) != want || resp.ProtoMajor != 2 {
						t.Errorf("%s: got %q, %v, want %q", resp.Proto, got, err, want)
						return
					}
					count.add(resp.Header.Get("X-Gapless-Generation"))
				}
			})
		}
	}
	for i := range n {
		pause(slower(300 * time.Millisecond))
		s.upgrade(i + 2)
	}
	pause(slower(500 * time.Millisecond))
	close(stop)
	wg.Wait()
	if len(count.by) != n+1 {
		t.Errorf("%d generations answered, want %d: %v", len(count.by), n+1, count.by)
	}
	s.stop()
}

// A client that connects again resumes its session, with any worker of any generation.
func TestTLS_SessionsResumeOverUpgrades(t *testing.T) {
	t.Parallel()
	s, cfg := secureServer(t, "-w", "3")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			c := cfg.Clone()
			c.MinVersion, c.MaxVersion, c.ClientSessionCache = version, version, tls.NewLRUClientSessionCache(1)
			connect := func() (resumed bool) {
				t.Helper()
				nc, err := tls.Dial("tcp", s.addr, c)
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				if _, err := io.WriteString(nc, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
				text, err := io.ReadAll(nc) // with it comes the ticket
				if err != nil || !bytes.HasPrefix(text, []byte("HTTP/1.1 200 ")) {
					t.Fatalf("got %q, %v", text, err)
				}
				return nc.ConnectionState().DidResume
			}
			if connect() {
				t.Error("resumed a session that never was")
			}
			for range 2 {
				for i := range 10 { // each worker gets some
					if !connect() {
						t.Errorf("connection %d does not resume", i)
					}
				}
				s.upgrade(s.lastCharge() + 1)
			}
			if !connect() {
				t.Error("not resumed after the last upgrade")
			}
		})
	}
	s.stop()
}

// socketClient sends numbered messages over a WebSocket, each when the one before has come back, until the server or the
// test ends it. It returns how many came back, and the error that ended it.
func socketClient(ctx context.Context, s *server, open func()) (int, error) {
	c, resp, err := websocket.Dial(ctx, "ws://"+s.addr+"/ws", nil)
	if resp != nil && resp.Body != nil {
		resp.Body.Close()
	}
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.CloseNow() }()
	open()
	for n := 0; ; n++ {
		want := fmt.Appendf(nil, "message %d", n)
		if err := c.Write(ctx, websocket.MessageText, want); err != nil {
			return n, err
		}
		_, got, err := c.Read(ctx)
		if err != nil {
			return n, err
		}
		if !bytes.Equal(got, want) {
			return n, fmt.Errorf("got %q, want %q", got, want)
		}
		select {
		case <-ctx.Done():
			return n + 1, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// WebSockets stay where they are: no message is lost, and none is cut while the drain may last.
func TestWebSocket_OutlivesUpgrades(t *testing.T) {
	s := start(t, options{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	var opened, echoed atomic.Int64
	const clients = 20
	for i := range clients {
		wg.Go(func() {
			n, err := socketClient(ctx, s, func() { opened.Add(1) })
			if ctx.Err() == nil {
				t.Errorf("client %d: cut after %d messages: %v", i, n, err)
			}
			echoed.Add(int64(n))
		})
	}
	eventually(t, patience, "all WebSockets are open", func() bool { return opened.Load() == clients || t.Failed() })
	for i := range 5 {
		pause(slower(200 * time.Millisecond))
		s.upgrade(i + 2)
	}
	pause(slower(200 * time.Millisecond))
	cancel()
	wg.Wait()
	if n := echoed.Load(); n < 20*clients {
		t.Errorf("only %d messages were echoed", n)
	}
	s.stop()
}

// At the end of the drain they are closed in order, with the code that says that it is worth to connect again, and not
// all at once.
func TestWebSocket_IsClosedAtTheEndOfTheDrain(t *testing.T) {
	t.Parallel()
	// A quarter of the time is kept for what cannot be waited for, so closes lie between 1.5 s and 3 s.
	s := start(t, options{flags: []string{"--drain-timeout", "4s", "--close-spread", "1500ms"}})
	const clients = 20
	var wg sync.WaitGroup
	var opened atomic.Int64
	ended := make(chan time.Time, clients)
	for i := range clients {
		wg.Go(func() {
			_, err := socketClient(t.Context(), s, func() { opened.Add(1) })
			if code := websocket.CloseStatus(err); code != websocket.StatusServiceRestart {
				t.Errorf("client %d: ended by %v, want close code %d", i, err, websocket.StatusServiceRestart)
			}
			ended <- time.Now()
		})
	}
	eventually(t, patience, "all WebSockets are open", func() bool { return opened.Load() == clients || t.Failed() })
	asked := time.Now()
	s.upgrade(2)
	wg.Wait()
	close(ended)
	var first, last time.Duration
	for at := range ended {
		d := at.Sub(asked)
		if first == 0 || d < first {
			first = d
		}
		last = max(last, d)
	}
	if first < 1500*time.Millisecond || last-first < 300*time.Millisecond {
		t.Errorf("closed from %v to %v after the upgrade was asked for, want from 1.5 s on, over 1.5 s", first, last)
	}
	s.stop()
}
