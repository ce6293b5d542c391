package nodejs_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"gapless/internal/channel"
	"gapless/internal/testwait"
)

// certificate makes files key.pem and cert.pem.
func certificate(t *testing.T) map[string]string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text := func(kind string, der []byte, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	keyText := text("EC PRIVATE KEY", keyDER, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	certDER, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return map[string]string{"key.pem": keyText, "cert.pem": text("CERTIFICATE", certDER, err)}
}

// A client of net/http with one connection at a time, which does not trust anybody.
func (a *app) secureClient(protocols *http.Protocols) (post func(path, body string) *http.Response) {
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Protocols: protocols, MaxConnsPerHost: 1}
	a.t.Cleanup(tr.CloseIdleConnections)
	client := &http.Client{Transport: tr, Timeout: patience}
	return func(path, body string) *http.Response {
		a.t.Helper()
		res, err := client.Post("https://"+a.addr+path, "", strings.NewReader(body))
		if err != nil {
			a.t.Fatal(err)
		}
		defer res.Body.Close()
		if got, err := io.ReadAll(res.Body); err != nil || string(got) != body {
			a.t.Fatalf("got %q, %v, want %q", got, err, body)
		}
		return res
	}
}

// TLS connections cannot travel: each gets one more answer, whether there is a queue or not.
func TestDrain_HTTPS(t *testing.T) {
	t.Parallel()
	a := launch(t, `
const fs = require('fs');
require('https').createServer({ key: fs.readFileSync('key.pem'), cert: fs.readFileSync('cert.pem') }, (req, res) => {
  setTimeout(() => req.pipe(res), Number(req.url.slice(1)));
}).listen(process.env.PORT);
`, setting{files: certificate(t), tls: true})
	post := a.secureClient(nil)
	if post("/0", "one").Close {
		t.Error("the first answer is the last")
	}
	a.order(channel.Drain{Deadline: minute, Handoff: true})
	a.waitDraining()
	if !post("/0", "two").Close {
		t.Error("the answer does not close its connection")
	}
	if status := a.exits(); status != 0 {
		t.Errorf("status %d", status)
	}
}

// HTTP/2 has GOAWAY: streams are finished.
func TestDrain_HTTP2(t *testing.T) {
	t.Parallel()
	a := launch(t, `
const fs = require('fs');
require('http2').createSecureServer({ key: fs.readFileSync('key.pem'), cert: fs.readFileSync('cert.pem') }, (req, res) => {
  console.log(req.url);
  setTimeout(() => req.pipe(res), Number(req.url.slice(1)));
}).listen(process.env.PORT);
`, setting{files: certificate(t), tls: true})
	var only http.Protocols
	only.SetHTTP2(true)
	post := a.secureClient(&only)
	post("/0", "one")
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		post("/500", "two")
	}()
	testwait.Until(t, "the second stream is open", func() bool { return strings.Contains(a.output(), "/500") })
	a.order(channel.Drain{Deadline: minute, Handoff: true})
	<-answered
	if status := a.exits(); status != 0 {
		t.Errorf("status %d", status)
	}
}

// Connections of unix sockets travel as those of TCP do.
func TestUnix(t *testing.T) {
	for name, listen := range map[string]string{"by its path": "listen('./socket')", "by its descriptor": "listen({fd: 3})", "in options": "listen({path: __dirname + '/socket'})"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := launch(t, "require('http').createServer((req, res) => req.pipe(res))."+listen, setting{unix: true})
			c := a.dial()
			c.ask("/0", "one")
			r := a.order(channel.Drain{Deadline: minute, Handoff: true})
			nc, err := a.take(r).NetConn()
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			if nc.RemoteAddr().Network() != "unix" {
				t.Errorf("it is of network %s", nc.RemoteAddr().Network())
			}
			a.exits()
			c.send("next")
			got := make([]byte, 4)
			if _, err := io.ReadFull(nc, got); err != nil || string(got) != "next" {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

// Servers that are not HTTP accept no more, and their connections are left to end.
func TestDrain_OtherProtocols(t *testing.T) {
	a := launch(t, "require('net').createServer((socket) => socket.pipe(socket)).listen(process.env.PORT);", setting{tls: true})
	c := a.dial()
	c.send("one")
	got := make([]byte, 3)
	if _, err := io.ReadFull(c.r, got); err != nil {
		t.Fatal(err)
	}
	a.order(channel.Drain{Deadline: minute, Handoff: true})
	if st := a.waitDraining(); st.Connections != 1 {
		t.Errorf("the status is %+v", st)
	}
	c.send("two")
	if _, err := io.ReadFull(c.r, got); err != nil || string(got) != "two" {
		t.Fatalf("got %q, %v", got, err)
	}
	_ = c.Close()
	a.exits()
}
