package gapless

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"time"
)

// ErrDraining is the cause of contexts that end because the process drains.
var ErrDraining = errors.New("gapless: the process is draining")

// Serve serves srv until the process is told to drain, drains it, and returns
// nil when its last connection has left or ended. It returns an error when it
// cannot begin or when something else closed the server.
//
// Without a manager it listens on srv.Addr, which may also be "unix:PATH";
// empty means ":http" or ":https". With one it takes sockets that it was
// passed: by name if srv.Addr is "NAME=ADDRESS" or "NAME", else those whose
// address is srv.Addr, else those of the first name that nobody took. Programs
// that call Serve more than once should name each.
//
// It speaks TLS if srv.TLSConfig has a certificate or a way to get one. With a
// manager all workers of all generations share the keys of session tickets,
// so that clients resume with any of them. They take the place of keys that
// the program has set and are rotated each day; a program that needs keys of
// its own sets WrapSession and UnwrapSession. Configurations that
// GetConfigForClient returns use the shared keys as they were when Serve
// began, unless keys were set on them; copies of srv.TLSConfig that are made
// after Serve has begun follow each rotation.
//
// The server's Handler, ConnState, ConnContext, BaseContext and ErrorLog stay
// in force; Serve adds its own around them, so srv must not be used again. Do
// not call srv.Shutdown at a signal: Serve drains, and Shutdown would close
// connections that were about to move. A program that ends srv itself waits for
// Shutdown to return, as with net/http: Serve's error wraps http.ErrServerClosed then.
//
// With several calls in one process each returns when all have drained.
func Serve(srv *http.Server) error { return current().serve(srv) }

// ServeTLS is Serve with the certificate and key in these files.
func ServeTLS(srv *http.Server, certFile, keyFile string) error {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return fmt.Errorf("gapless: certificate %s with key %s: %w", certFile, keyFile, err)
	}
	if srv.TLSConfig == nil {
		srv.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	} else {
		srv.TLSConfig = srv.TLSConfig.Clone()
	}
	srv.TLSConfig.Certificates = append([]tls.Certificate{cert}, srv.TLSConfig.Certificates...)
	return Serve(srv)
}

// Listen returns the listener of that name, for anything but an http.Server:
// pass it to the server's own Serve, and end that server when Draining is
// closed. Without a manager it listens itself, for which name must be
// "NAME=ADDRESS" (or an address alone).
//
// The worker is ready once Accept was called on every listener that it was
// passed; see Ready. The listener is not closed by draining.
func Listen(name string) (net.Listener, error) { return current().listen(name) }

// Ready says that the worker serves. Serve and the listeners say so by
// themselves once all sockets that the manager passed are waited on; a program
// that leaves some unused calls Ready when it serves the others. Only the
// first call does something. Without a manager it does nothing.
func Ready() error { return current().ready() }

// Draining is closed when the process is told to drain. Programs that use only
// Listen call it before they accept, so that the manager knows that they heed
// it. Handlers of
// long-lived connections that can end between two messages, such as
// WebSockets, rather use Linger.
func Draining() <-chan struct{} {
	p := current()
	p.mu.Lock()
	p.heed()
	p.mu.Unlock()
	return p.draining
}

// Linger returns a context for a connection that lives long, such as a
// WebSocket. It ends with parent, and when the process drains and the
// connection should be closed (for a WebSocket: with code 1012, "service
// restart"). That is as late as the drain allows, and at another moment for
// each call, so that not all clients return at once: within the time that the
// manager gave for spreading, before the drain's deadline. Where everything
// stops it is at once, within a second at most.
func Linger(parent context.Context) (context.Context, context.CancelFunc) {
	return current().linger(parent)
}

// Worker is the slot of this worker, from 0; 0 without a manager.
func Worker() int { return current().env.worker }

// Generation is the generation that this worker belongs to, from 1; 0 without
// a manager.
func Generation() int { return current().env.generation }

func (p *process) serve(srv *http.Server) error {
	secure := hasCertificate(srv.TLSConfig)
	fallback := ":http"
	if secure {
		fallback = ":https"
		if t := p.tickets; t != nil {
			srv.TLSConfig = t.join(srv.TLSConfig)
			p.ticketsOnce.Do(func() { p.loops.Go(func() { t.run(p.ctx) }) })
		}
	}
	ls, err := p.pick(srv.Addr, fallback)
	if err != nil {
		return err
	}
	s := newServer(p, srv, ls[0].name, secure)
	p.enter(s)
	err = s.run(ls)
	p.exit(err == nil)
	if err != nil {
		return fmt.Errorf("gapless: %w", err)
	}
	return nil
}

// hasCertificate says whether cfg can be served. HTTP/2 packages set a
// configuration without certificates on servers that have no TLS.
func hasCertificate(cfg *tls.Config) bool {
	return cfg != nil && (len(cfg.Certificates) > 0 || cfg.GetCertificate != nil || cfg.GetConfigForClient != nil)
}

// announced is a listener that tells when it is first waited on.
type announced struct {
	*inherited
	p *process
}

func (a announced) Accept() (net.Conn, error) {
	a.p.serving(a.inherited)
	return a.Listener.Accept()
}

func (p *process) listen(name string) (net.Listener, error) {
	ls, err := p.pick(name, "")
	if err != nil {
		return nil, err
	}
	if len(ls) > 1 {
		return nil, fmt.Errorf("gapless: listener %q has %d sockets, and Listen returns one", name, len(ls))
	}
	return announced{ls[0], p}, nil
}

func (p *process) linger(parent context.Context) (context.Context, context.CancelFunc) {
	p.mu.Lock()
	p.heed()
	p.mu.Unlock()
	ctx, cancel := context.WithCancelCause(parent)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-ctx.Done():
			return
		case <-p.draining:
		}
		at := p.order.lingerUntil(rand.Float64())
		var late <-chan time.Time
		if !at.IsZero() {
			t := time.NewTimer(time.Until(at))
			defer t.Stop()
			late = t.C
		}
		stop := p.stop
		if p.order.stop {
			stop = nil // it is what the order says already
		}
		select {
		case <-ctx.Done():
		case <-late:
			cancel(ErrDraining)
		case <-stop:
			cancel(ErrDraining)
		}
	}()
	return ctx, func() { cancel(context.Canceled); <-done }
}

// lingerUntil is when a connection that lives long should end: a share, from 0
// to 1, of the time for spreading before the drain's end. The zero time means
// never.
func (o order) lingerUntil(share float64) time.Time {
	switch {
	case o.stop:
		return o.from.Add(time.Duration(share * float64(min(o.spread, stopIdle))))
	case o.deadline == 0:
		return time.Time{}
	}
	last := o.deadline - o.margin()
	return o.from.Add(last - time.Duration(share*float64(min(o.spread, last))))
}
