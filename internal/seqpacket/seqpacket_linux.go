package seqpacket

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxFDs is the room for descriptors in a received packet. One is expected;
// a few more are taken in so that they can be closed rather than truncated.
const maxFDs = 4

// Pair makes a connected pair. sndbuf is the size of both send buffers in
// bytes, capped by net.core.wmem_max; 0 leaves the system's default.
func Pair(sndbuf int) (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make seqpacket pair: %w", os.NewSyscallError("socketpair", err))
	}
	if sndbuf > 0 {
		for _, fd := range fds {
			// FORCE needs CAP_NET_ADMIN and passes the system's limit.
			if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sndbuf) != nil {
				_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sndbuf)
			}
		}
	}
	return os.NewFile(uintptr(fds[0]), "seqpacket"), os.NewFile(uintptr(fds[1]), "seqpacket"), nil
}

// DupRaw is Dup for anything that has a raw connection, such as a net.Conn.
func DupRaw(rc syscall.RawConn, name string) (*os.File, error) {
	var f *os.File
	var derr error
	err := rc.Control(func(fd uintptr) { f, derr = DupFD(int(fd), name) })
	if err != nil {
		return nil, err
	}
	return f, derr
}

// DupFD is Dup for a bare descriptor.
func DupFD(fd int, name string) (*os.File, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	if err := unix.SetNonblock(dup, true); err != nil {
		_ = unix.Close(dup)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(dup), name), nil
}

func checkType(rc syscall.RawConn) error {
	var typ int
	var terr error
	err := rc.Control(func(fd uintptr) {
		typ, terr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE)
	})
	if err = errors.Join(err, os.NewSyscallError("getsockopt", terr)); err != nil {
		return err
	}
	if typ != unix.SOCK_SEQPACKET {
		return fmt.Errorf("socket type is %d, want SOCK_SEQPACKET (%d)", typ, unix.SOCK_SEQPACKET)
	}
	return nil
}

// Pending tells whether a packet waits to be received.
func (c *Conn) Pending() bool {
	waiting := 0
	err := c.rc.Control(func(s uintptr) {
		if n, err := unix.IoctlGetInt(int(s), unix.SIOCINQ); err == nil {
			waiting = n
		}
	})
	return err == nil && waiting > 0
}

// Send sends one packet, with fd unless it is negative. It does not block:
// ErrFull is the answer when there is no room.
func (c *Conn) Send(p []byte, fd int) error {
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	var n int
	var serr error
	err := c.rc.Control(func(s uintptr) {
		for {
			n, serr = unix.SendmsgN(int(s), p, oob, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			if serr != unix.EINTR {
				return
			}
		}
	})
	switch {
	case err != nil:
		return asClosed(c.f, err)
	case serr == unix.EAGAIN:
		return ErrFull
	case serr != nil:
		return os.NewSyscallError("sendmsg", serr)
	case n != len(p):
		// A seqpacket socket sends all or nothing.
		return fmt.Errorf("sendmsg: sent %d of %d bytes", n, len(p))
	}
	return nil
}

// SendFrom is Send with the descriptor behind rc.
func (c *Conn) SendFrom(p []byte, rc syscall.RawConn) error {
	var serr error
	if err := rc.Control(func(fd uintptr) { serr = c.Send(p, int(fd)) }); err != nil {
		return err
	}
	return serr
}

// ShutWrite has every later Send on this end fail, in all processes that hold it.
// The other end receives what was sent before, and then io.EOF.
func (c *Conn) ShutWrite() error {
	var serr error
	if err := c.rc.Control(func(s uintptr) { serr = unix.Shutdown(int(s), unix.SHUT_WR) }); err != nil {
		return asClosed(c.f, err)
	}
	return os.NewSyscallError("shutdown", serr)
}

// WaitWritable blocks until there is room to send again, the write deadline
// passes or the connection is closed.
func (c *Conn) WaitWritable() error {
	var perr error
	err := c.rc.Write(func(s uintptr) bool {
		p := []unix.PollFd{{Fd: int32(s), Events: unix.POLLOUT}}
		n, err := unix.Poll(p, 0)
		if err == unix.EINTR {
			return false
		}
		perr = err
		return n != 0 || err != nil
	})
	if err != nil {
		return asClosed(c.f, err)
	}
	return os.NewSyscallError("poll", perr)
}

// WaitReadable waits until there is something to receive, or until the read
// deadline, and receives nothing.
func (c *Conn) WaitReadable() error {
	var perr error
	err := c.rc.Read(func(s uintptr) bool {
		p := []unix.PollFd{{Fd: int32(s), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		for err == unix.EINTR {
			n, err = unix.Poll(p, 0)
		}
		perr = err
		return n != 0 || err != nil
	})
	if err != nil {
		return asClosed(c.f, err)
	}
	return os.NewSyscallError("poll", perr)
}

// Receive waits for a packet and returns its length and its descriptor, which
// the caller owns, or -1 if it carries none. At the end, io.EOF.
func (c *Conn) Receive(p []byte) (n, fd int, err error) { return c.receive(p, true) }

// Next is the length of the packet that waits to be received; 0 if that is not known.
func (c *Conn) Next() (n int) {
	_ = c.rc.Control(func(s uintptr) {
		const peek = unix.MSG_PEEK | unix.MSG_TRUNC | unix.MSG_DONTWAIT
		var err error
		if n, _, err = unix.Recvfrom(int(s), nil, peek); err != nil { // as in receive, what was sent before a reset follows
			n, _, _ = unix.Recvfrom(int(s), nil, peek)
		}
	})
	return max(n, 0)
}

// TryReceive is Receive without waiting: fd is -1 and err is
// os.ErrDeadlineExceeded when there is no packet.
func (c *Conn) TryReceive(p []byte) (n, fd int, err error) { return c.receive(p, false) }

func (c *Conn) receive(p []byte, wait bool) (n, fd int, err error) {
	var oob [64]byte // CmsgSpace(maxFDs * 4) is 32
	var oobn, flags int
	var rerr error
	reset := false
	read := func(s uintptr) bool {
		for {
			n, oobn, flags, _, rerr = unix.Recvmsg(int(s), p, oob[:unix.CmsgSpace(maxFDs*4)], unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
			switch {
			case rerr == unix.EINTR:
			case rerr == unix.ECONNRESET && !reset:
				// The peer went with packets of ours unread. What it sent before
				// that is still to be had.
				reset = true
			default:
				return rerr != unix.EAGAIN || !wait
			}
		}
	}
	if wait {
		err = c.rc.Read(read)
	} else {
		err = c.rc.Control(func(s uintptr) { read(s) })
	}
	switch {
	case err != nil:
		return 0, -1, asClosed(c.f, err)
	case rerr == unix.EAGAIN:
		return 0, -1, os.ErrDeadlineExceeded
	case rerr == unix.ECONNRESET:
		return 0, -1, io.EOF
	case rerr != nil:
		return 0, -1, os.NewSyscallError("recvmsg", rerr)
	case n == 0 && oobn == 0 && flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) == 0:
		return 0, -1, io.EOF
	}
	fds := rights(oob[:oobn])
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || len(fds) > 1 {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		if len(fds) > 1 {
			return 0, -1, fmt.Errorf("%w: it carries %d descriptors, want at most 1", ErrTruncated, len(fds))
		}
		return 0, -1, ErrTruncated
	}
	if len(fds) == 0 {
		return n, -1, nil
	}
	return n, fds[0], nil
}

// rights returns the descriptors in a control message, all of which the
// kernel has already installed.
func rights(oob []byte) []int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var fds []int
	for i := range msgs {
		if got, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

// CloseFD closes a descriptor that Receive returned.
func CloseFD(fd int) { _ = unix.Close(fd) }
