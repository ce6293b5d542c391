// Package adapter gives servers that know nothing of gapless a small file of their own language that lets them take part
// in handoffs. The command line stays as it is: the interpreter is told about the file through the environment.
//
// Invariants: an adapter that cannot be put in force changes nothing but what the log and the status say; what is written
// to disk can be changed by nobody but this user, and is compared with what the binary holds before each use; no variable
// of the user is replaced, only added to.
package adapter

import (
	"slices"
	"strings"
)

// The adapters that there are.
const (
	Uvicorn = "uvicorn"
	Node    = "node"
)

// Modes of the flag --adapter.
const (
	Auto = "auto"
	Off  = "off"
)

// kit is one adapter: its files, and what has its interpreter load them.
type kit struct {
	files map[string][]byte // by name
	// environ adds to env what loads the files from dir.
	environ func(env []string, dir string) []string
}

// kitOf returns the kit of an adapter.
func kitOf(name string) (kit, bool) {
	switch name {
	case Uvicorn:
		return uvicornKit(), true
	case Node:
		return nodeKit(), true
	}
	return kit{}, false
}

// withList puts word before (or behind) what a variable lists already. An empty variable counts as none: to Python, for
// one, an empty element of a list is the working directory.
func withList(env []string, name, separator, word string, before bool) []string {
	out := slices.Clip(slices.Clone(env))
	for i := len(out) - 1; i >= 0; i-- { // of two the last one counts
		old, ok := strings.CutPrefix(out[i], name+"=")
		switch {
		case !ok:
		case old == "":
			out[i] = name + "=" + word
			return out
		case before:
			out[i] = name + "=" + word + separator + old
			return out
		default:
			out[i] = name + "=" + old + separator + word
			return out
		}
	}
	return append(out, name+"="+word)
}
