//go:build !linux

package logging

import "golang.org/x/sys/unix"

const getTermios = unix.TIOCGETA
