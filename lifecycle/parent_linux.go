package lifecycle

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// becomeSubreaper makes orphans of ours come to us.
func becomeSubreaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper of orphans: %w", err)
	}
	return nil
}

// tellSelf puts the sentinel at the end of what waits on our notify socket.
func (p *parent) tellSelf(what string) error {
	c, err := net.Dial("unixgram", p.sock.Address())
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte(sentinelField + "=" + what))
	return err
}

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
