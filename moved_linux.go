package gapless

import (
	"syscall"
	"time"

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

// tcpQuiet is how long ago the client was last heard; 0 if that is not known.
func tcpQuiet(rc syscall.RawConn) (d time.Duration) {
	_ = rc.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			d = time.Duration(info.Last_data_recv) * time.Millisecond
		}
	})
	return d
}
