//go:build !linux

package gapless

import "gapless/internal/handoff"

// idleSet is empty: connections come from other processes on Linux only.
type idleSet struct{ s *server }

func (*idleSet) keep(*handoff.Conn) bool { return false }
func (*idleSet) finish()                 {}
func (*idleSet) leave() int              { return 0 }
func (*idleSet) close()                  {}
func (*idleSet) len() int                { return 0 }
