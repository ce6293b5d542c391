package notify

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"

	"gapless/internal/packet"

	"golang.org/x/sys/unix"
)

// Listen opens a socket under a random abstract name: nothing to unlink, no directory to have the right for, and no
// name to guess.
func Listen() (*Socket, error) {
	name := "@gapless-" + rand.Text()
	uc, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("open a notify socket: %w", err)
	}
	raw, err := uc.SyscallConn()
	if err == nil {
		var opt error
		if err = raw.Control(func(fd uintptr) { opt = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) }); err == nil {
			err = opt
		}
	}
	if err != nil {
		uc.Close()
		return nil, fmt.Errorf("ask for credentials on a notify socket: %w", err)
	}
	return &Socket{uc, name}, nil
}

// Receive reads one message. Descriptors that came along are closed. A datagram that is no message is ErrForeign, and
// the caller goes on.
func (s *Socket) Receive() (Message, error) {
	buf := make([]byte, maxDatagram)
	oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(4*packet.MaxFiles))
	n, oobn, _, _, err := s.uc.ReadMsgUnix(buf, oob)
	if err != nil {
		return Message{}, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return Message{}, ErrForeign
	}
	m := Message{Fields: Parse(buf[:n])}
	for i := range msgs {
		if fds, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
		if cred, err := unix.ParseUnixCredentials(&msgs[i]); err == nil {
			m.PID, m.UID = int(cred.Pid), int(cred.Uid)
		}
	}
	if m.PID == 0 || len(m.Fields) == 0 {
		return Message{}, ErrForeign
	}
	return m, nil
}

// File returns a duplicate of the socket's descriptor, to hand it to the next master.
func (s *Socket) File() (*os.File, error) { return packet.Dup(s.uc, "notify "+s.address) }
