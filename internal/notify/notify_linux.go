package notify

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"time"

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
	m, err := s.ReceiveFDs()
	CloseFDs(m.FDs)
	m.FDs = nil
	return m, err
}

// CloseFDs closes what ReceiveFDs has returned.
func CloseFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // there is nothing that a caller could do about an error
	}
}

// ReceiveFDs is Receive for one who keeps the descriptors. When this process has room for only some of those that came along,
// it gets none.
func (s *Socket) ReceiveFDs() (m Message, err error) {
	defer func() {
		if err != nil {
			CloseFDs(m.FDs)
			m.FDs = nil
		}
	}()
	buf := make([]byte, maxDatagram)
	oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(4*packet.MaxFiles))
	n, oobn, flags, _, err := s.uc.ReadMsgUnix(buf, oob)
	if err != nil {
		return m, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return m, ErrForeign
	}
	m.Fields = Parse(buf[:n])
	for i := range msgs {
		if fds, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			m.FDs = append(m.FDs, fds...)
		}
		if cred, err := unix.ParseUnixCredentials(&msgs[i]); err == nil {
			m.PID, m.UID = int(cred.Pid), int(cred.Uid)
		}
	}
	if flags&unix.MSG_CTRUNC != 0 { // some of them would be taken for all of them
		CloseFDs(m.FDs)
		m.FDs = nil
	}
	if m.PID == 0 || len(m.Fields) == 0 {
		return m, ErrForeign
	}
	return m, nil
}

// File returns a duplicate of the socket's descriptor, to hand it to the next master.
func (s *Socket) File() (*os.File, error) { return packet.Dup(s.uc, "notify "+s.address) }

// sendPatience bounds what a receiver that does not read can cost.
const sendPatience = 2 * time.Second

// Send writes one message, with files travelling beside it, to the socket of this address. Once it has returned nil the
// message and the files are safe from the end of this process. The files stay the caller's.
func Send(address, state string, files ...*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		fd, err := packet.Descriptor(f)
		if err != nil {
			return fmt.Errorf("send %s: %w", f.Name(), err)
		}
		fds[i] = fd
	}
	err := SendFDs(address, state, fds...)
	runtime.KeepAlive(files)
	return err
}

// SendFDs is Send for one who holds bare descriptors. An address without @ is a path.
func SendFDs(address, state string, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	// A socket per message: it is rare, and a blocking one with a limit needs no goroutine.
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("notify %s: %w", address, err)
	}
	defer func() { _ = unix.Close(sock) }()
	limit := unix.NsecToTimeval(int64(sendPatience))
	err = unix.SetsockoptTimeval(sock, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)
	for err == nil {
		if err = unix.Sendmsg(sock, []byte(state), oob, &unix.SockaddrUnix{Name: address}, unix.MSG_NOSIGNAL); err == unix.EINTR {
			err = nil
			continue
		}
		break
	}
	if err != nil {
		return fmt.Errorf("notify %s: %w", address, err)
	}
	return nil
}

// Barrier returns when the receiver has acted on all that this process sent before, or with an error after limit. It is that
// of sd_notify(3): the receiver closes the descriptor that comes with BARRIER=1.
func Barrier(address string, limit time.Duration) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	err = Send(address, "BARRIER=1", w)
	if err = errors.Join(err, w.Close(), r.SetReadDeadline(time.Now().Add(limit))); err != nil {
		return err
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("wait for the receiver at %s: %w", address, err)
	}
	return nil
}
