//go:build unix

package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

// The limits of what a client may ask of the parent.
const (
	maxBody       = 64 << 10
	maxHeader     = 16 << 10
	maxClients    = 128              // requests at a time, streams among them
	readPatience  = 10 * time.Second // for a whole request
	writePatience = 10 * time.Second // for each write to a client
	idlePatience  = time.Minute
	// farewell is how long Serve waits at its end for clients to take the outcome of the operation that ended it.
	farewell = 2 * time.Second
)

type server struct {
	ctl  Controller
	log  *zap.Logger
	uid  int           // who may ask, beside root
	room chan struct{} // holds one element for each request

	ctx context.Context // of the operations; ends with the parent

	mu    sync.Mutex
	ended bool // no further operation begins
	ops   sync.WaitGroup
}

// begin runs an operation in a goroutine that serve waits for. It returns false if the parent ends.
func (s *server) begin(operation func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.ops.Go(operation)
	return true
}

// end lets the operations that run return, and no others begin.
func (s *server) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.ops.Wait()
}

// Serve answers at l from ctl until ctx ends or l fails. It then closes l, lets running operations return (their context
// has ended too) and gives their clients 2 s to take the outcome. It returns nil if ctx has ended. log may be nil.
func Serve(ctx context.Context, l net.Listener, ctl Controller, log *zap.Logger) error {
	if log == nil {
		log = zap.NewNop()
	}
	return serve(ctx, l, &server{ctl: ctl, log: log, uid: os.Geteuid(), room: make(chan struct{}, maxClients), ctx: ctx})
}

// refused is the key under which a connection's context holds why its client gets no answer.
type refused struct{}

func serve(ctx context.Context, l net.Listener, s *server) error {
	failures, err := zap.NewStdLogAt(s.log, zap.DebugLevel) // of single connections
	if err != nil {
		return fmt.Errorf("log of the control socket: %w", err)
	}
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: readPatience,
		IdleTimeout:       idlePatience,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          failures,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if err := s.admit(c); err != nil {
				s.log.Warn("Refused a client of the control socket", zap.Error(err))
				return context.WithValue(ctx, refused{}, err)
			}
			return ctx
		},
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err = <-served:
	case <-ctx.Done():
	}
	s.end()
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	if srv.Shutdown(bye) != nil {
		_ = srv.Close() // what is left are clients that do not read
	}
	if ctx.Err() != nil {
		if err == nil {
			<-served
		}
		return nil
	}
	return fmt.Errorf("serve the control socket %s: %w", l.Addr(), err)
}

func (s *server) admit(c net.Conn) error {
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("a client at %s came over no unix socket", c.LocalAddr())
	}
	who, err := peerOf(conn)
	if err != nil {
		return err
	}
	if who.uid != s.uid && who.uid != 0 {
		return fmt.Errorf("pid %d is of user %d: only user %d and root may control this gapless", who.pid, who.uid, s.uid)
	}
	return nil
}

// endpoint is one path of the API.
type endpoint struct {
	method string
	query  string // the one parameter that it knows
	handle func(*server, http.ResponseWriter, *http.Request)
}

func endpointOf(path string) (endpoint, bool) {
	switch path {
	case "/v1/status":
		return endpoint{http.MethodGet, "", (*server).status}, true
	case "/v1/events":
		return endpoint{http.MethodGet, "", (*server).events}, true
	case "/v1/upgrade":
		return endpoint{http.MethodPost, "wait", operate(Controller.Upgrade, checkUpgrade)}, true
	case "/v1/shift":
		return endpoint{http.MethodPost, "wait", operate(Controller.Shift, checkShift)}, true
	case "/v1/promote":
		return endpoint{http.MethodPost, "wait", operate(Controller.Promote, checkPromote)}, true
	case "/v1/abort":
		return endpoint{http.MethodPost, "wait", operate(Controller.Abort, nil)}, true
	case "/v1/rollback":
		return endpoint{http.MethodPost, "wait", operate(Controller.Rollback, nil)}, true
	case "/v1/reload":
		return endpoint{http.MethodPost, "wait", operate(Controller.Reload, nil)}, true
	case "/v1/scale":
		return endpoint{http.MethodPost, "wait", operate(Controller.Scale, checkScale)}, true
	case "/v1/stop":
		return endpoint{http.MethodPost, "wait", operate(Controller.Stop, nil)}, true
	}
	return endpoint{}, false
}

// ServeHTTP answers one request.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e, known := endpointOf(r.URL.Path)
	switch err, _ := r.Context().Value(refused{}).(error); {
	case err != nil:
		refuse(w, http.StatusForbidden, codeForbidden, err.Error())
		return
	case !known:
		refuse(w, http.StatusNotFound, codeNotFound, fmt.Sprintf("there is no %q: see /v1/status, events, upgrade, shift, promote, abort, rollback, reload, scale and stop", r.URL.Path))
		return
	case r.Method != e.method:
		w.Header().Set("Allow", e.method)
		refuse(w, http.StatusMethodNotAllowed, codeMethod, fmt.Sprintf("%s takes %s", r.URL.Path, e.method))
		return
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		refuse(w, http.StatusBadRequest, codeBadRequest, fmt.Sprintf("the query does not parse: %v", err))
		return
	}
	for key := range values {
		if key != e.query {
			refuse(w, http.StatusBadRequest, codeBadRequest, fmt.Sprintf("%s knows no parameter %q", r.URL.Path, key))
			return
		}
	}
	select {
	case s.room <- struct{}{}:
		defer func() { <-s.room }()
	default:
		refuse(w, http.StatusServiceUnavailable, codeBusy, fmt.Sprintf("there are %d clients already: try again later", maxClients))
		return
	}
	e.handle(s, w, r)
}

func (s *server) status(w http.ResponseWriter, r *http.Request) {
	st, err := s.ctl.Status(r.Context())
	if err != nil {
		fail(w, err)
		return
	}
	reply(w, http.StatusOK, st.withLists())
}

// withLists returns st with lists that are empty rather than null, for the sake of those who loop over them.
func (st Status) withLists() Status {
	st.Addresses, st.Warnings = full(st.Addresses), full(st.Warnings)
	st.Generations = append([]Generation{}, st.Generations...)
	for i := range st.Generations {
		g := &st.Generations[i]
		g.Workers, g.Command = full(g.Workers), full(g.Command)
	}
	return st
}

func full[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func (s *server) events(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	st := newStream()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := s.ctl.Subscribe(ctx, st.event)
		if err != nil && ctx.Err() == nil {
			st.end(line{Error: problemOf(err)})
			return
		}
		st.end(line{})
	}()
	send(w, r, st, true)
	cancel()
	<-ended
}

// operate returns the handler of an operation. It begins the operation once the request is known to be good, and then
// only watches it: the operation's context is the parent's.
func operate[Req any](do func(Controller, context.Context, Req, func(Event)) (Result, error), check func(Req) error) func(*server, http.ResponseWriter, *http.Request) {
	return func(s *server, w http.ResponseWriter, r *http.Request) {
		wait := true
		switch text := r.URL.Query().Get("wait"); text {
		case "", "true":
		case "false":
			wait = false
		default:
			refuse(w, http.StatusBadRequest, codeBadRequest, fmt.Sprintf("wait=%s: write true or false", text))
			return
		}
		var req Req
		err := read(w, r, &req)
		if err == nil && check != nil {
			err = check(req)
		}
		if err != nil {
			refuse(w, http.StatusBadRequest, codeBadRequest, err.Error())
			return
		}
		st := newStream()
		if !s.begin(func() {
			result, err := do(s.ctl, s.ctx, req, st.event)
			st.end(outcome(result, err))
		}) {
			fail(w, ErrNotRunning)
			return
		}
		if !wait {
			st.leave()
			reply(w, http.StatusAccepted, map[string]bool{"accepted": true})
			return
		}
		send(w, r, st, false)
	}
}

func outcome(result Result, err error) line {
	switch {
	case err == nil:
		return line{Result: &result}
	case errors.Is(err, ErrBusy):
		result.OK, result.Busy = false, true
		if result.Reason == "" {
			result.Reason = err.Error()
		}
		return line{Result: &result}
	default:
		return line{Error: problemOf(err)}
	}
}

func checkScale(req ScaleRequest) error {
	if req.Workers < 1 || req.Workers > MaxWorkers {
		return fmt.Errorf("workers: %d is no number of workers: write 1 to %d", req.Workers, MaxWorkers)
	}
	return nil
}

// read reads a request's body, which may be empty, into req. What req does not know is an error.
func read(w http.ResponseWriter, r *http.Request, req any) error {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(readPatience))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	_ = rc.SetReadDeadline(time.Time{}) // from here on only the client's going away is read
	return decodeRequest(body, req)
}

func decodeRequest(body []byte, req any) error {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	if bytes.TrimSpace(body)[0] != '{' {
		return errors.New("the request is no JSON object: write, for example, {}")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(req); err != nil {
		return fmt.Errorf("the request does not parse: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("the request goes on after its JSON object: send one object")
	}
	return nil
}
