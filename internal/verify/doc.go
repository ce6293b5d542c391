// Package verify finds out whether clients notice a deploy: it drives a load of several kinds of clients against a server,
// has the server replaced again and again meanwhile, and reports what was lost, what was closed and how long answers
// took, in steady state and around each deploy.
//
// A Plan says what to send where, and an Act is what is done to the server: an upgrade, or a fault. Run performs a plan
// and returns a Report; Report.Judge compares it with Limits. Server is a gapless that Run's caller starts for the
// purpose, and Command is any other server with the shell command that deploys it.
//
// # Invariants
//
//   - Nothing is retried, and nothing is excused because of when it happened. The one exception is told apart and never
//     hidden: what a worker that was killed on purpose had in hand, known from the kernel's list of its connections.
//   - Requests = OK + Drops + Own + what was not finished when the run ended; each is counted once.
//   - Latency counts from the time at which a request was meant to be sent.
//   - When the generator itself could not keep up, the report says so, and no verdict is "passed".
//   - Run returns when its load has ended, and no act is left under way.
package verify
