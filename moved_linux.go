package gapless

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// tcpBytes is how many bytes the client has sent and has acknowledged; 0 if
// the connection has just been closed.
func tcpBytes(rc syscall.RawConn) int64 {
	var n int64
	_ = rc.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = int64(info.Bytes_acked + info.Bytes_received) //nolint:gosec // no connection moves 2^63 bytes
		}
	})
	return n
}
