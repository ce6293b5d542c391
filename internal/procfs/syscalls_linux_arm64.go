package procfs

import "golang.org/x/sys/unix"

// arm64 has no poll and no select of its own: negative numbers, which no thread can be in.
const (
	sysAccept   = unix.SYS_ACCEPT
	sysAccept4  = unix.SYS_ACCEPT4
	sysPoll     = -2
	sysPpoll    = unix.SYS_PPOLL
	sysSelect   = -3
	sysPselect6 = unix.SYS_PSELECT6
)
