//go:build !linux

package procfs

import "syscall"

// SignalChild fails with ErrNotSupported.
func SignalChild(int, syscall.Signal) error { return ErrNotSupported }
