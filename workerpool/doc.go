// Package workerpool runs worker processes: it starts them, learns when they are ready, replaces those that die,
// drains them, and takes over those that an earlier master started.
//
// A Pool holds the workers that one master is responsible for: those of its own generation, each in a numbered
// slot, and the adopted ones of earlier generations, which only drain. Every worker has one goroutine that owns it
// and that the Pool waits for; the state of a worker is written in one place, (*worker).to, along this table:
//
//	starting ──▶ ready ──▶ draining ──▶ killing ──▶ exited
//	    │          └───────────┼───────────┘           ▲
//	    └──────────────────────┴── from every state ───┘
//
// The invariants:
//
//   - A worker gets its stop signal only after the Gate has taken its share of new connections away.
//   - Processes are signalled through pidfds only.
//   - While the Pool is frozen no process is started and nothing is read from a worker, so that the records that Freeze
//     returns stay true until the next master has them.
//
// The package knows neither sockets' addresses nor upgrades: who gets which socket, and who takes new connections,
// is the Gate's business.
package workerpool
