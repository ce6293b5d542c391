//go:build !linux

package relay

import (
	"errors"
	"os"
)

// Waiting is how many connections wait at a listening socket: elsewhere than on Linux nobody knows.
func Waiting(*os.File) int { return 1 }

func accept(*os.File) (*os.File, error) {
	return nil, errors.New("relaying is not supported on this operating system")
}
