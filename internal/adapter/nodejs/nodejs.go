// Package nodejs holds the adapter for node: JavaScript that node loads before an unchanged program, and that makes it a
// worker which gives its connections away and takes those of others.
//
// Invariants, which the tests here hold against a real node: a connection leaves between two requests and with nothing
// read of the next; one that cannot leave is served on; and where node is not as expected, the program runs as it would
// alone.
package nodejs

import "embed"

// Main is the name of the file that node is to load; it finds the others beside itself.
const Main = "register.cjs"

// Files are the adapter's files.
//
//go:embed *.cjs
var Files embed.FS
