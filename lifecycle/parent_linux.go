package lifecycle

import (
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// becomeSubreaper makes orphans of ours come to us.
func becomeSubreaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper of orphans: %w", err)
	}
	return nil
}

// tellSelf puts the sentinel at the end of what waits on our notify socket. It does not wait for room there: a dozen
// messages fill the socket, and it is the caller, the goroutine of govern, who makes room.
func (p *parent) tellSelf(what string) error {
	c, err := net.Dial("unixgram", p.sock.Address())
	if err != nil {
		return err
	}
	go func() { // ends when there is room, or soon after govern
		defer c.Close()
		for {
			_ = c.SetWriteDeadline(time.Now().Add(sentinelRetry))
			if _, err := c.Write([]byte(sentinelField + "=" + what)); err == nil {
				return
			}
			select { // full still, or the kernel is short of memory
			case <-time.After(sentinelRetry):
			case <-p.over:
				return
			}
		}
	}()
	return nil
}

// sentinelRetry is how long it waits for room before it looks whether anybody still makes some.
const sentinelRetry = 50 * time.Millisecond

// dupBeyond duplicates a file's descriptor to a number of at least least.
func dupBeyond(f *os.File, least int) (fd int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	var dupErr error
	if err := raw.Control(func(orig uintptr) { fd, dupErr = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, least) }); err != nil {
		return -1, err
	}
	if dupErr != nil {
		return -1, fmt.Errorf("hold the master's binary as descriptor %d: %w", least, dupErr)
	}
	return fd, nil
}
