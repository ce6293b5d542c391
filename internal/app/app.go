// Package app is the built-in server: what `gapless run` runs when it is given
// no command. It shows which generation answers, and has a path for each kind
// of traffic that an upgrade must not disturb. It serves through package
// gapless like any other program.
package app

import (
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"

	"gapless"
)

// HeaderGeneration is on every answer, so that load tests see an upgrade.
const HeaderGeneration = "X-Gapless-Generation"

// previewPeer is the address that the connections of `gapless run --preview` come from.
const previewPeer = "127.77.0.1"

// headerRequestID is repeated, so that a client can tell its answers apart.
const headerRequestID = "X-Request-Id"

// defaultAddr is where the app listens when nobody passes it a socket.
const defaultAddr = "127.0.0.1:8000"

// The bounds of what a request may ask for.
const (
	maxSlow   = 10 * time.Minute
	maxStream = 1_000_000
	maxEcho   = 32 << 20 // bytes
	maxFrame  = 1 << 20  // bytes of a WebSocket message
)

//go:embed page.html
var pageText string

// Info says who answers.
type Info struct {
	Generation int `json:"generation"`
	Worker     int `json:"worker"`
	PID        int `json:"pid"`
}

// Main is the whole program. args are its arguments, without its name; help
// and complaints about them go to stderr. It returns when the last connection
// has left or ended.
func Main(args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("gapless app", flag.ContinueOnError)
	flags.SetOutput(stderr)
	addr := flags.String("listen", defaultAddr, "`address` to listen on when no socket is passed in")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q: gapless app takes none", flags.Arg(0))
	}
	info := Info{Generation: gapless.Generation(), Worker: gapless.Worker(), PID: os.Getpid()}
	return gapless.Serve(&http.Server{
		Addr:    *addr,
		Handler: New(info),
		// Slow clients may take their time over a body, not over a head.
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       10 * time.Minute,
	})
}

// New returns the app's handler.
func New(info Info) http.Handler {
	a := &app{info: info, generation: strconv.Itoa(info.Generation), page: template.Must(template.New("page").Parse(pageText))}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", a.root)
	mux.HandleFunc("POST /{$}", a.length)
	mux.HandleFunc("POST /echo", a.echo)
	mux.HandleFunc("GET /slow", a.slow)
	mux.HandleFunc("GET /stream", a.stream)
	mux.HandleFunc("GET /ws", a.ws)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, "ok\n")
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(HeaderGeneration, a.generation)
		if id := r.Header.Get(headerRequestID); id != "" {
			w.Header().Set(headerRequestID, id)
		}
		mux.ServeHTTP(w, r)
	})
}

type app struct {
	info       Info
	generation string
	page       *template.Template
}

// root shows a page to those who ask for one and JSON to everybody else.
func (a *app) root(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Vary", "Accept")
	w.Header().Set("Cache-Control", "no-store")
	page := struct {
		Info
		Preview bool `json:"preview,omitempty"` // asked for at the preview address
	}{a.info, strings.HasPrefix(r.RemoteAddr, previewPeer+":")}
	if !strings.Contains(r.Header.Get("Accept"), "text/html") {
		a.answer(w, page)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:")
	_ = a.page.Execute(w, page) // an error here is a client that went away
}

func (a *app) answer(w http.ResponseWriter, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(text, '\n'))
}

// length says how long the body was.
func (a *app) length(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, fmt.Sprintf("read the body: %v", err), http.StatusBadRequest)
		return
	}
	a.answer(w, struct {
		Info
		Length int64 `json:"length"`
	}{a.info, n})
}

// echo returns the body.
func (a *app) echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxEcho))
	if err != nil {
		http.Error(w, fmt.Sprintf("read the body: %v", err), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
}

// slow answers after ?ms=.
func (a *app) slow(w http.ResponseWriter, r *http.Request) {
	d, err := milliseconds(r, 1000)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !wait(r, d) {
		return
	}
	a.answer(w, struct {
		Info
		Milliseconds int64 `json:"ms"`
	}{a.info, d.Milliseconds()})
}

// stream sends ?n= lines, one each ?ms=, in chunks.
func (a *app) stream(w http.ResponseWriter, r *http.Request) {
	d, err := milliseconds(r, 20)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	n, err := number(r, "n", 100, maxStream)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	rc := http.NewResponseController(w)
	for i := range n {
		if i > 0 && !wait(r, d) {
			return
		}
		if _, err := fmt.Fprintf(w, "%d\n", i); err != nil {
			return
		}
		if err := rc.Flush(); err != nil {
			return
		}
	}
}

// ws echoes messages until the client leaves or the drain ends.
func (a *app) ws(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // Accept has answered
	}
	defer func() { _ = c.CloseNow() }()
	c.SetReadLimit(maxFrame)
	ctx, cancel := gapless.Linger(r.Context())
	defer cancel()
	if err := a.echoMessages(c, r, ctx.Done()); err != nil {
		return
	}
	_ = c.Close(websocket.StatusServiceRestart, "this worker is being replaced; connect again")
}

// echoMessages returns nil when leave is closed, and never between a message
// and its echo.
func (a *app) echoMessages(c *websocket.Conn, r *http.Request, leave <-chan struct{}) error {
	type message struct {
		kind websocket.MessageType
		data []byte
	}
	messages, failed := make(chan message), make(chan error, 1)
	stop := make(chan struct{})
	defer close(stop)
	go func() { // ends when the connection is closed, which ws does on return
		for {
			kind, data, err := c.Read(r.Context())
			if err != nil {
				failed <- err
				return
			}
			select {
			case messages <- message{kind, data}:
			case <-stop:
				return
			}
		}
	}()
	for {
		select {
		case m := <-messages:
			if err := c.Write(r.Context(), m.kind, m.data); err != nil {
				return err
			}
		case err := <-failed:
			return err
		case <-leave:
			select {
			case m := <-messages: // one that has already arrived still gets its echo
				return c.Write(r.Context(), m.kind, m.data)
			default:
				return nil
			}
		}
	}
}

// wait says whether d passed before the client left.
func wait(r *http.Request, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

func milliseconds(r *http.Request, def int) (time.Duration, error) {
	n, err := number(r, "ms", def, int(maxSlow/time.Millisecond))
	return time.Duration(n) * time.Millisecond, err
}

func number(r *http.Request, key string, def, limit int) (int, error) {
	v := r.URL.Query().Get(key)
	if v == "" {
		return def, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 || n > limit {
		return 0, fmt.Errorf("%s: want a number from 0 to %d, got %q", key, limit, v)
	}
	return n, nil
}
