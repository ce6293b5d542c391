package gapless

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// quietLog is for servers that are sent nonsense on purpose.
func quietLog() *log.Logger { return log.New(io.Discard, "", 0) }

// strange is a handler that uses what net/http offers, by path.
func strange(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/unread":
		_, _ = io.WriteString(w, "not read")
	case "/some":
		b := make([]byte, 3)
		n, err := io.ReadFull(r.Body, b)
		fmt.Fprintf(w, "%q %v", b[:n], err)
	case "/panic":
		panic(http.ErrAbortHandler)
	case "/hijack":
		nc, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			http.Error(w, err.Error(), 500)
			return
		}
		defer nc.Close()
		_, _ = io.WriteString(nc, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: raw\r\n\r\n")
		// Everything the client says from here on is echoed until it ends.
		_, _ = io.Copy(nc, io.MultiReader(io.LimitReader(rw, int64(rw.Reader.Buffered())), nc))
	case "/duplex":
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.WriteString(w, "before ")
		_, _ = io.Copy(w, r.Body)
	case "/close":
		w.Header().Set("Connection", "close")
		_, _ = io.WriteString(w, "bye")
	case "/closed-body":
		_ = r.Body.Close()
		_, _ = io.WriteString(w, "closed")
	default:
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s host=%q len=%d te=%q body=%q err=%v trailer=%v", r.Method, r.RequestURI, r.Proto, r.Host,
			r.ContentLength, r.TransferEncoding, body, err, r.Trailer)
	}
}

const (
	get  = "GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
	last = "GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
)

func post(path, headers, body string) string {
	return "POST " + path + " HTTP/1.1\r\nHost: x\r\n" + headers + "\r\n" + body
}

func chunked(body string) string { return post("/c", "Transfer-Encoding: chunked\r\n", body) }

// conversations are what clients send on one connection, well-formed or not.
var conversations = []struct{ name, send string }{
	{"get", get + last},
	{"pipelined", strings.Repeat(get, 20) + last},
	{"head", "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n" + last},
	{"post", post("/", "Content-Length: 5\r\n", "hello") + last},
	{"post, empty", post("/", "Content-Length: 0\r\n", "") + last},
	{"post, no length", post("/", "", "") + last},
	{"post, 100 kB", post("/unread", "Content-Length: 100000\r\n", strings.Repeat("x", 100_000)) + last},
	{"post, pipelined", strings.Repeat(post("/", "Content-Length: 5\r\n", "hello"), 10) + last},
	{"post, then empty lines", post("/", "Content-Length: 1\r\n", "x") + "\r\n" + get + last},
	{"post, then two empty lines", post("/", "Content-Length: 1\r\n", "x") + "\r\n\r\n" + get + last},
	{"post, then three empty lines", post("/", "Content-Length: 1\r\n", "x") + "\r\n\r\n\r\n" + get + last},
	{"post, then bare line feeds", post("/", "Content-Length: 1\r\n", "x") + "\n\n" + get + last},
	{"get, then an empty line", get + "\r\n" + get + last},
	{"empty line first", "\r\n" + get + last},
	{"empty lines first", "\r\n\r\n\r\n" + get + last},
	{"only empty lines", "\r\n\r\n\r\n\r\n\r\n"},
	{"bare line feeds", "GET / HTTP/1.1\nHost: x\n\n" + last},
	{"mixed line ends", "GET / HTTP/1.1\r\nHost: x\nA: b\r\n\n" + last},
	{"bare carriage return", "GET / HTTP/1.1\r\nHost: x\r\nA: b\rC: d\r\n\r\n" + last},
	{"blanks on the empty line", "GET / HTTP/1.1\r\nHost: x\r\n \r\n\r\n" + last},
	{"double carriage return", "GET / HTTP/1.1\r\nHost: x\r\r\n\r\n" + last},
	{"carriage return before the end", "GET / HTTP/1.1\r\nHost: x\r\n\r\r\n\r\n" + last},
	{"folded header", "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n  c\r\n\r\n" + last},
	{"no host", "GET / HTTP/1.1\r\n\r\n" + last},
	{"two hosts", "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n" + last},
	{"bad host", "GET / HTTP/1.1\r\nHost: x y\r\n\r\n" + last},
	{"no version", "GET /\r\n\r\n" + last},
	{"HTTP/0.9", "GET / HTTP/0.9\r\n\r\n" + last},
	{"HTTP/2.0", "GET / HTTP/2.0\r\nHost: x\r\n\r\n" + last},
	{"HTTP/1.2", "GET / HTTP/1.2\r\nHost: x\r\n\r\n" + last},
	{"HTTP/1.0", "GET / HTTP/1.0\r\n\r\n" + last},
	{"HTTP/1.0 keep-alive", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + last},
	{"HTTP/1.0 post keep-alive", "POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc" + last},
	{"nonsense", "hello\r\n\r\n" + last},
	{"nonsense without end", "hello"},
	{"TLS hello", "\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + strings.Repeat("\x00\x01", 80)},
	{"bad method", "G@T / HTTP/1.1\r\nHost: x\r\n\r\n" + last},
	{"bad header name", "GET / HTTP/1.1\r\nHost: x\r\nA b: c\r\n\r\n" + last},
	{"header without colon", "GET / HTTP/1.1\r\nHost: x\r\nABC\r\n\r\n" + last},
	{"null in header", "GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n" + last},
	{"oversized head", "GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("x", 20_000) + "\r\n\r\n" + last},
	{"oversized head without end", "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: x\r\n", 4000)},
	{"head just below the limit", "GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("x", 7000) + "\r\n\r\n" + last},
	{"too many headers", "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A:\r\n", 2000) + "\r\n" + last},

	{"two lengths", post("/", "Content-Length: 5\r\nContent-Length: 6\r\n", "hello") + last},
	{"two equal lengths", post("/", "Content-Length: 5\r\nContent-Length: 5\r\n", "hello") + last},
	{"list of lengths", post("/", "Content-Length: 5, 5\r\n", "hello") + last},
	{"negative length", post("/", "Content-Length: -1\r\n", "hello") + last},
	{"signed length", post("/", "Content-Length: +5\r\n", "hello") + last},
	{"length with blanks", post("/", "Content-Length:   5  \r\n", "hello") + last},
	{"huge length", post("/", "Content-Length: 99999999999999999999\r\n", "hello") + last},
	{"length and chunked", post("/", "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n") + last},
	{"chunked and length", post("/", "Transfer-Encoding: chunked\r\nContent-Length: 100\r\n", "0\r\n\r\n") + last},
	{"chunked twice", post("/", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n") + last},
	{"chunked, identity", post("/", "Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n") + last},
	{"gzip, chunked", post("/", "Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n") + last},
	{"unknown coding", post("/", "Transfer-Encoding: moon\r\n", "0\r\n\r\n") + last},
	{"coding with a blank before the colon", post("/", "Transfer-Encoding : chunked\r\n", "0\r\n\r\n") + last},
	{"coding with a vertical tab", post("/", "Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n") + last},
	{"get with a body", "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello" + last},
	{"get with a chunked body", "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + last},
	{"HTTP/1.0 chunked", "POST / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + last},

	{"chunked", chunked("5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n") + last},
	{"chunked, empty", chunked("0\r\n\r\n") + last},
	{"chunked, pipelined", strings.Repeat(chunked("5\r\nhello\r\n0\r\n\r\n"), 10) + last},
	{"chunked, unread", strings.Replace(chunked("5\r\nhello\r\n0\r\n\r\n"), "/c", "/unread", 1) + last},
	{"chunked, read in part", strings.Replace(chunked("5\r\nhello\r\n0\r\n\r\n"), "/c", "/some", 1) + last},
	{"chunked, extensions", chunked("5;a=b;c=\"d\"\r\nhello\r\n0;last\r\n\r\n") + last},
	{"chunked, extension with a quoted line end", chunked("5;a=\"\r\n\"\r\nhello\r\n0\r\n\r\n") + last},
	{"chunked, blanks behind the size", chunked("5 \t\r\nhello\r\n0 \r\n\r\n") + last},
	{"chunked, blanks before the size", chunked(" 5\r\nhello\r\n0\r\n\r\n") + last},
	{"chunked, blanks before an extension", chunked("5 ;a\r\nhello\r\n0\r\n\r\n") + last},
	{"chunked, leading zeros", chunked("0005\r\nhello\r\n000\r\n\r\n") + last},
	{"chunked, many zeros", chunked("5\r\nhello\r\n"+strings.Repeat("0", 20)+"\r\n\r\n") + last},
	{"chunked, upper case", chunked("A\r\n0123456789\r\n0\r\n\r\n") + last},
	{"chunked, prefix", chunked("0x5\r\nhello\r\n0\r\n\r\n") + last},
	{"chunked, no size", chunked("\r\nhello\r\n0\r\n\r\n") + last},
	{"chunked, extension without size", chunked(";a\r\n\r\n") + last},
	{"chunked, negative", chunked("-5\r\nhello\r\n0\r\n\r\n") + last},
	{"chunked, overflow", chunked("10000000000000005\r\nhello\r\n0\r\n\r\n") + last},
	{"chunked, largest", chunked("ffffffffffffffff\r\nhello") + last},
	{"chunked, bare line feeds", chunked("5\nhello\n0\n\n") + last},
	{"chunked, bare line feed in data end", chunked("5\r\nhello\n0\r\n\r\n") + last},
	{"chunked, data too long", chunked("3\r\nhello\r\n0\r\n\r\n") + last},
	{"chunked, carriage return in the size", chunked("5\rX\nhello\r\n0\r\n\r\n") + last},
	{"chunked, long extension", chunked("5;"+strings.Repeat("a", 5000)+"\r\nhello\r\n0\r\n\r\n") + last},
	{"chunked, one byte each", chunked(strings.Repeat("1\r\nx\r\n", 3000)+"0\r\n\r\n") + last},
	{"chunked, trailer", post("/", "Transfer-Encoding: chunked\r\nTrailer: A\r\n", "1\r\nx\r\n0\r\nA: b\r\n\r\n") + last},
	{"chunked, trailers", chunked("1\r\nx\r\n0\r\nA: b\r\nC: d\r\n\r\n") + last},
	{"chunked, folded trailer", chunked("1\r\nx\r\n0\r\nA: b\r\n c\r\n\r\n") + last},
	{"chunked, trailer with bare line feeds", chunked("1\r\nx\r\n0\r\nA: b\n\n") + last},
	{"chunked, trailer with one bare line feed", chunked("1\r\nx\r\n0\r\nA: b\nC: d\r\n\r\n") + last},
	{"chunked, bare line feed for trailers", chunked("1\r\nx\r\n0\r\n\n") + last},
	{"chunked, bad trailer", chunked("1\r\nx\r\n0\r\nA b\r\n\r\n") + last},
	{"chunked, double carriage return in trailers", chunked("1\r\nx\r\n0\r\nA: b\r\r\n\r\n") + last},
	{"chunked, forbidden trailer", chunked("1\r\nx\r\n0\r\nContent-Length: 5\r\n\r\n") + last},
	{"chunked, long trailer", chunked("1\r\nx\r\n0\r\nA: "+strings.Repeat("x", 6000)+"\r\n\r\n") + last},

	{"expect", post("/", "Expect: 100-continue\r\nContent-Length: 5\r\n", "hello") + last},
	{"expect, unread", post("/unread", "Expect: 100-continue\r\nContent-Length: 5\r\n", "hello") + last},
	{"expect, chunked", post("/", "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n") + last},
	{"expect, nothing", post("/", "Expect: 100-continue\r\nContent-Length: 0\r\n", "") + last},
	{"expect, unknown", post("/", "Expect: moon\r\nContent-Length: 5\r\n", "hello") + last},

	{"options star", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n" + last},
	{"options star with a body", "OPTIONS * HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello" + last},
	{"options star with a chunked body", "OPTIONS * HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + last},
	{"options star with a large body", "OPTIONS * HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n" + strings.Repeat("x", 9000) + last},
	{"get star", "GET * HTTP/1.1\r\nHost: x\r\n\r\n" + last},
	{"absolute", "GET http://y/z HTTP/1.1\r\nHost: x\r\n\r\n" + last},
	{"connect", "CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n" + last},
	{"preface", preface + "SM\r\n\r\n" + last},
	{"preface, later", get + preface + "SM\r\n\r\n" + last},
	{"almost a preface", "PRI * HTTP/2.0\r\nA: b\r\n\r\n" + last},

	{"unread", post("/unread", "Content-Length: 5\r\n", "hello") + last},
	{"read in part", post("/some", "Content-Length: 5\r\n", "hello") + last},
	{"body closed", post("/closed-body", "Content-Length: 5\r\n", "hello") + last},
	{"panic", post("/panic", "Content-Length: 5\r\n", "hello") + last},
	{"server closes", "GET /close HTTP/1.1\r\nHost: x\r\n\r\n" + last},
	{"full duplex", post("/duplex", "Content-Length: 5\r\n", "hello") + last},
	{"full duplex, chunked", post("/duplex", "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n") + last},
	{"hijack", "GET /hijack HTTP/1.1\r\nHost: x\r\n\r\nsome bytes" + last},
	{"hijack with a body", post("/hijack", "Content-Length: 5\r\n", "hello") + "some bytes"},
	{"cut head", "GET / HTTP/1.1\r\nHo"},
	{"cut body", post("/", "Content-Length: 10\r\n", "hello")},
	{"cut chunk", chunked("5\r\nhel")},
	{"cut trailers", chunked("5\r\nhello\r\n0\r\nA: b\r\n")},
	{"get and cut", get + "GE"},
	{"nothing", ""},
}

// pair of servers: bare net/http and the same through Serve.
func barAndOurs(t *testing.T, configure func(*http.Server)) (bare, ours string) {
	t.Helper()
	mk := func() *http.Server {
		srv := &http.Server{Handler: http.HandlerFunc(strange), ErrorLog: quietLog(), MaxHeaderBytes: 4096}
		if configure != nil {
			configure(srv)
		}
		return srv
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	plain := mk()
	var wg sync.WaitGroup
	wg.Go(func() { _ = plain.Serve(l) })
	t.Cleanup(func() { _ = plain.Close(); wg.Wait() })

	p := noEnv(t)
	addr, done := serveOn(t, p, "web", mk())
	t.Cleanup(func() { p.orderStop(); await(t, done) })
	return l.Addr().String(), addr
}

var date = regexp.MustCompile(`Date: [^\r]*\r\n`)

// converse sends the pieces, ends its side, and returns all that comes back.
// Half of what a server does depends on how its input is cut.
func converse(t *testing.T, addr string, pieces []string, pause time.Duration) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(15 * time.Second))
	var got bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := io.Copy(&got, c)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s never ends the connection, after %q", addr, got.String())
		}
	}()
	for i, s := range pieces {
		if i > 0 && pause > 0 {
			<-time.After(pause)
		}
		if _, err := io.WriteString(c, s); err != nil {
			break // the server has closed; what it said counts
		}
	}
	_ = c.(*net.TCPConn).CloseWrite()
	<-done
	return date.ReplaceAllString(got.String(), "")
}

func TestConformance(t *testing.T) {
	h2c := new(http.Protocols)
	h2c.SetHTTP1(true)
	h2c.SetUnencryptedHTTP2(true)
	// What follows the first frame of a conversation that has become HTTP/2, and cannot be it, comes in the order in which
	// the server's goroutines happen to write: the window's update before the farewell, or not at all.
	http2Answers := func(want, got string) bool {
		const settings = "\x00\x00\x1e\x04"
		return strings.HasPrefix(want, settings) && strings.HasPrefix(got, settings)
	}
	for name, configure := range map[string]func(*http.Server){
		"plain":      nil,
		"timeouts":   func(s *http.Server) { s.ReadTimeout, s.IdleTimeout = 10*time.Second, 10*time.Second },
		"h2c":        func(s *http.Server) { s.Protocols = h2c },
		"no options": func(s *http.Server) { s.DisableGeneralOptionsHandler = true },
	} {
		t.Run(name, func(t *testing.T) {
			bare, ours := barAndOurs(t, configure)
			for _, tc := range conversations {
				t.Run(tc.name, func(t *testing.T) {
					t.Parallel()
					half := len(tc.send) / 2
					cuts := map[string][]string{"whole": {tc.send}, "halves": {tc.send[:half], tc.send[half:]}}
					if name == "plain" && len(tc.send) < 300 {
						cuts["bytes"] = strings.Split(tc.send, "")
					}
					for cut, pieces := range cuts {
						gaps := time.Millisecond
						if cut == "bytes" {
							gaps = 50 * time.Microsecond
						}
						// Asked more than once, as a reset behind an answer may
						// swallow it, with net/http as well.
						var want, got string
						for range 5 {
							want = converse(t, bare, pieces, gaps)
							got = converse(t, ours, pieces, gaps)
							if want == got || http2Answers(want, got) {
								break
							}
						}
						if want != got && !http2Answers(want, got) {
							t.Errorf("%s: net/http answers\n%q\nwe answer\n%q", cut, want, got)
						}
					}
				})
			}
		})
	}
}
