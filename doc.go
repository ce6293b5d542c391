// Package gapless lets a Go server take part in deploys that its clients do
// not notice. One line changes:
//
//	err := gapless.Serve(srv) // was: srv.ListenAndServe()
//
// Run alone, such a program is a plain server that ends gracefully at SIGTERM
// or SIGINT (a second one ends it at once). Run by the gapless command it
// serves sockets that outlive it, says when it is ready, and drains when a new
// generation has taken over.
//
// # What draining does
//
// A connection that speaks HTTP/1.1 over TCP or a unix socket, without TLS,
// moves to a worker of the new generation the next time it stands between two
// requests. The client sees nothing of it: the connection stays open, and no
// byte that it sent is lost or read by two processes. Where that cannot be:
//
//   - TLS, or nobody who takes over: each response says "Connection: close",
//     and connections that are idle are answered once more before they end, as
//     far as the time allows.
//   - HTTP/2: GOAWAY, and its streams finish.
//   - Hijacked connections, such as WebSockets: the program ends them; see
//     Linger and Draining.
//
// # What always holds
//
// Nothing is closed that net/http would have kept, before the drain's end
// forces it; but for the connections of a listener that the new generation
// serves with TLS, or no more, while it serves another one as before. net/http reads no byte beyond the request that it serves, so a
// connection is moved whole or not at all. When a connection cannot be moved
// it stays where it is and is served there.
//
// # What differs from net/http
//
// Handlers that hijack a connection get one that is not a *net.TCPConn; its
// NetConn method returns that. For a program's ConnState hook a connection
// that moves away is closed, and one that came from another process is new
// when its next request begins. All of its idle time until then counts for
// IdleTimeout, anew after each move. What srv.RegisterOnShutdown was given is
// called late in a drain, when no HTTP/1.1 connection is left that could be lost:
// long answers that should end early watch Draining, or use Linger.
package gapless
