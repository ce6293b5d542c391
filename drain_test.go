package gapless

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"gapless/internal/testwait"
)

// selfSigned is a certificate for 127.0.0.1.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// slowly answers after gate is closed, for /slow, and at once elsewhere.
func slowly(entered chan<- struct{}, gate <-chan struct{}) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			entered <- struct{}{}
			<-gate
		}
		fmt.Fprintf(w, "%s over %s", r.URL.Path, r.Proto)
	})
}

func fetch(t *testing.T, c *http.Client, url string) (string, *http.Response) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body), resp
}

func protocols(set ...func(*http.Protocols, bool)) *http.Protocols {
	p := new(http.Protocols)
	for _, f := range set {
		f(p, true)
	}
	return p
}

func TestDrain_ProtocolsFinishWhatIsInFlight(t *testing.T) {
	cert := selfSigned(t)
	secure := func() *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	http1, http2, h2c := (*http.Protocols).SetHTTP1, (*http.Protocols).SetHTTP2, (*http.Protocols).SetUnencryptedHTTP2
	for _, tc := range []struct {
		name, scheme, proto string
		cfg                 *tls.Config
		server, client      *http.Protocols
	}{
		{"HTTP/1.1", "http", "HTTP/1.1", nil, nil, protocols(http1)},
		{"HTTP/1.1 over TLS", "https", "HTTP/1.1", secure(), nil, protocols(http1)},
		{"HTTP/2 over TLS", "https", "HTTP/2.0", secure(), nil, protocols(http1, http2)},
		{"HTTP/2 without TLS", "http", "HTTP/2.0", nil, protocols(http1, h2c), protocols(h2c)},
	} {
		for _, how := range []struct {
			name  string
			order func() order
		}{
			{"stop", func() order { return order{from: time.Now(), stop: true} }},
			{"upgrade", func() order { return order{from: time.Now(), deadline: 4 * time.Second} }},
		} {
			t.Run(tc.name+"/"+how.name, func(t *testing.T) {
				p := noEnv(t)
				entered, gate := make(chan struct{}), make(chan struct{})
				addr, done := serveOn(t, p, "web", &http.Server{
					Handler: slowly(entered, gate), TLSConfig: tc.cfg, Protocols: tc.server, ErrorLog: quietLog(),
				})
				transport := &http.Transport{
					Protocols:       tc.client,
					TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // the server's own, made above
				}
				defer transport.CloseIdleConnections()
				client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
				url := tc.scheme + "://" + addr
				if got, _ := fetch(t, client, url+"/first"); got != "/first over "+tc.proto {
					t.Fatalf("got %q", got)
				}
				var wg sync.WaitGroup
				wg.Go(func() {
					if got, _ := fetch(t, client, url+"/slow"); got != "/slow over "+tc.proto {
						t.Errorf("in flight: got %q", got)
					}
				})
				<-entered
				p.orderDrain(how.order())
				select {
				case <-done:
					t.Error("Serve returned before the request was answered")
				case <-time.After(50 * time.Millisecond):
				}
				close(gate)
				wg.Wait()
				await(t, done)
			})
		}
	}
}

// An idle connection, a silent one and one in the middle of a handshake must
// not hold up the end for long.
func TestDrain_IdleConnectionsEnd(t *testing.T) {
	cert := selfSigned(t)
	for name, cfg := range map[string]*tls.Config{
		"plain": nil,
		"TLS":   {Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
	} {
		t.Run(name, func(t *testing.T) {
			p := noEnv(t)
			addr, done := serveOn(t, p, "web", &http.Server{Handler: http.NotFoundHandler(), TLSConfig: cfg, ErrorLog: quietLog()})
			silent := dialN(t, addr, 2)
			begun := dialN(t, addr, 1)[0]
			half := "GET / HT"
			if cfg != nil {
				half = "\x16\x03\x01\x01\x00"
			}
			if _, err := io.WriteString(begun, half); err != nil {
				t.Fatal(err)
			}
			var idle []net.Conn
			for _, proto := range []string{"http/1.1", "h2"} {
				if cfg == nil {
					idle = append(idle, dialN(t, addr, 1)...)
					continue
				}
				c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{proto}})
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				idle = append(idle, c)
			}
			testwait.Until(t, "all connections are accepted", func() bool {
				p.mu.Lock()
				defer p.mu.Unlock()
				return len(p.servers) == 1 && p.servers[0].count() == len(silent)+len(idle)+1
			})
			p.orderStop()
			await(t, done)
		})
	}
}

func TestDrain_WaitsForHijackedConnections(t *testing.T) {
	p := noEnv(t)
	addr, done := serveOn(t, p, "web", &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		nc, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		go func() {
			defer nc.Close()
			ctx, cancel := p.linger(context.Background())
			defer cancel()
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), ErrDraining) {
				t.Errorf("cause: %v", context.Cause(ctx))
			}
			_, _ = io.WriteString(nc, "bye")
		}()
	})})
	c := dialN(t, addr, 1)[0]
	if _, err := io.WriteString(c, get); err != nil {
		t.Fatal(err)
	}
	testwait.Until(t, "the connection is hijacked", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, s := range p.servers {
			for _, c := range s.snapshot() {
				return c.kind() == kindHijacked
			}
		}
		return false
	})
	begin := time.Now()
	p.orderDrain(order{from: begin, deadline: 2 * time.Second, spread: 500 * time.Millisecond})
	if got, err := io.ReadAll(c); err != nil || string(got) != "bye" {
		t.Errorf("got %q, %v", got, err)
	}
	if took := time.Since(begin); took < 900*time.Millisecond {
		t.Errorf("ended after %v, want at least 1s", took)
	}
	await(t, done)
}

func TestServe_UsersHooksStayInForce(t *testing.T) {
	p := noEnv(t)
	type key struct{}
	var mu sync.Mutex
	seen := map[http.ConnState]bool{}
	addr, done := serveOn(t, p, "web", &http.Server{
		ConnContext: func(ctx context.Context, nc net.Conn) context.Context { return context.WithValue(ctx, key{}, "conn") },
		BaseContext: func(l net.Listener) context.Context {
			if _, ok := l.(*net.TCPListener); !ok {
				t.Errorf("BaseContext gets a %T", l)
			}
			return context.Background()
		},
		ConnState: func(_ net.Conn, st http.ConnState) { mu.Lock(); seen[st] = true; mu.Unlock() },
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, r.Context().Value(key{}))
		}),
	})
	transport := &http.Transport{}
	if got, _ := fetch(t, &http.Client{Transport: transport}, "http://"+addr); got != "conn" {
		t.Errorf("ConnContext's value is %q", got)
	}
	transport.CloseIdleConnections()
	p.orderStop()
	await(t, done)
	// net/http tells of a closed connection after it has closed it.
	testwait.Until(t, "ConnState was told of every state", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return seen[http.StateNew] && seen[http.StateActive] && seen[http.StateIdle] && seen[http.StateClosed]
	})
}

func TestServe_ReturnsWhenTheProgramShutsDown(t *testing.T) {
	p := noEnv(t)
	srv := &http.Server{Handler: http.NotFoundHandler()}
	_, done := serveOn(t, p, "web", srv)
	testwait.Until(t, "it serves", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.servers) == 1 && p.listeners[0].serving })
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Serve has not returned")
	}
}
