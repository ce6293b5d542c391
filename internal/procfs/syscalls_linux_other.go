//go:build linux && !amd64 && !arm64

package procfs

// Numbers that no thread can be in: only epoll is seen on these machines.
const (
	sysAccept   = -1
	sysAccept4  = -2
	sysPoll     = -3
	sysPpoll    = -4
	sysSelect   = -5
	sysPselect6 = -6
)
