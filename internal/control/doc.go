// Package control is the control API of gapless, version 1: HTTP and JSON over a unix socket that the parent owns.
//
// The parent listens with Listen, and answers with Serve, from a Controller that it implements itself: it forwards to
// the master in charge and answers for itself while there is none. The verbs of the command line are Clients of it, and
// docs/control-api.md describes it for everybody else.
//
// What always holds:
//
//   - Nobody but the user that the parent runs as, and root, gets an answer: the socket has mode 0600 from birth on, lies
//     in a folder that nobody else can write to, and the kernel's word on who is at the other end is checked as well.
//   - A client can begin an operation and can not end it: one that goes away, stalls or sends garbage changes nothing,
//     and delays nobody. What it was to be told is dropped once it lags too far behind.
//   - Serve returns after every operation that it has begun has returned.
//
// A field that an older client does not know is ignored by it. A field in a request that an older parent does not know is
// refused: to upgrade at once where staging was asked for would be worse than an error.
package control
