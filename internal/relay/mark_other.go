//go:build !linux

package relay

import (
	"errors"
	"syscall"
)

func markSocket(syscall.RawConn, int) error {
	return errors.New("marked connections are not supported on this operating system")
}
