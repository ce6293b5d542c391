// Package bench measures gapless with real processes on loopback and prints each figure with its target beside it.
//
// It is run by `make bench`, by hand and on a machine that does nothing else: none of it is a test, and a figure that
// misses its target is printed as missed and fails nothing. What would make a figure worthless does fail: a refused
// connection, a wrong answer, an upgrade that was aborted.
//
// Ratios compare two servers that both run while the other is measured, in turns, so that what else happens on the
// machine meets both alike; clients and servers share its cores.
package bench
