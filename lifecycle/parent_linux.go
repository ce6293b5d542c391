package lifecycle

import (
	"fmt"
	"net"

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
func (p *parent) tellSelf() error {
	c, err := net.Dial("unixgram", p.sock.Address())
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte(sentinelField + "=1"))
	return err
}
