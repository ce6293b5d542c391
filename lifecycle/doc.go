// Package lifecycle composes the others into the processes of gapless: the parent, whose PID never changes, and the
// masters, each of which owns one generation of workers and is replaced by an upgrade.
//
// Both are one oklog/run group of named actors (Group). What they say to each other:
//
//   - The parent to the master in charge: numbered signals over the link, a packet pair that every master inherits.
//     The master acknowledges each when it acts on it; what nobody acknowledged, the parent repeats to the next master.
//   - The masters to the parent: sd_notify messages, in which MAINPID makes a master the candidate; it takes charge
//     when the one before it has been reaped.
//   - A master to its successor: package upgrade.
//   - A master to whoever takes its place if it is killed: the store, which the parent keeps (FDSTORE), and the ledger in
//     it. What clients can meet is in both before they meet it.
//
// The end of the link tells a master that the parent has gone; it then drains and exits. A master that dies without a
// successor is replaced by the parent, from the same binary; one that exits with 0 meant to.
package lifecycle
