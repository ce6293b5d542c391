package gapless

import (
	"net"
	"strings"
)

// notify sends one datagram as sd_notify does. It is written here because
// programs that import this package should link no more than they must.
func notify(socket, state string) error {
	if strings.HasPrefix(socket, "@") {
		socket = "\x00" + socket[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte(state))
	return err
}
