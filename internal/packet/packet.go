// Package packet carries small JSON messages, and descriptors with them, between processes of gapless.
//
// A packet is one message of an AF_UNIX SOCK_SEQPACKET pair: it arrives whole or not at all, in order, and the
// end of file tells that the last process holding the other end has gone. Both ends are non-blocking and
// close-on-exec from birth. The parent's link to its masters and the successor channel between two masters are
// such pairs.
package packet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// MaxFiles is the most descriptors that one packet carries: the kernel's SCM_MAX_FD.
const MaxFiles = 253

// maxMessage bounds one message in bytes, below the default socket buffer of 208 KiB.
const maxMessage = 128 << 10

// ErrTruncated says that a packet arrived without all its descriptors, most likely because this process is out of
// them. The kernel has closed those that did not fit.
var ErrTruncated = errors.New("packet arrived incomplete; raise the limit on open files")

// ErrUnreadable says that a packet was received that is none of what the receiver expects: the two ends are of different
// versions. It has been consumed, as a truncated one has; the connection is in order, and the next packet may be read.
var ErrUnreadable = errors.New("not understood")

// ErrFull says that the other end has not read enough for one more packet to fit.
var ErrFull = errors.New("the other end does not read: the connection is full")

// Conn is one end of a pair. Send and Receive may be called from different goroutines.
type Conn struct {
	uc *net.UnixConn

	reading  sync.Mutex
	buf, oob []byte // kept: garbage of this size, for each packet, would be most of what a manager collects
}

// Pair returns the two ends of a new connection, to be wrapped by New or inherited by a child.
func Pair() (a, b *os.File, err error) {
	fds, err := socketpair()
	if err != nil {
		return nil, nil, fmt.Errorf("create a socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "packet-a"), os.NewFile(uintptr(fds[1]), "packet-b"), nil
}

// New makes a connection of an end of a pair. It takes f over and closes it.
func New(f *os.File) (*Conn, error) {
	defer f.Close() // net.FileConn works on a duplicate
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %s is no packet socket: %w", f.Name(), err)
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("descriptor %s is no packet socket but a %T", f.Name(), c)
	}
	return &Conn{uc: uc}, nil
}

// TrySend is Send without files that waits for no room: ErrFull says that there is none now.
func (c *Conn) TrySend(v any) error {
	data, err := encode(v)
	if err != nil {
		return err
	}
	raw, err := c.uc.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	// Not by raw.Write, which fails without a look when a deadline of an earlier Send has passed.
	err = raw.Control(func(fd uintptr) {
		for {
			_, sendErr = unix.SendmsgN(int(fd), data, nil, nil, unix.MSG_DONTWAIT)
			if !errors.Is(sendErr, syscall.EINTR) {
				return
			}
		}
	})
	switch {
	case err != nil:
		return err
	case errors.Is(sendErr, syscall.EAGAIN), errors.Is(sendErr, syscall.ENOBUFS):
		return ErrFull
	case sendErr != nil:
		return fmt.Errorf("send a packet: %w", sendErr)
	}
	return nil
}

func encode(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode a packet: %w", err)
	}
	if len(data) > maxMessage {
		return nil, fmt.Errorf("a packet of %d bytes is too large: %w", len(data), syscall.EMSGSIZE)
	}
	return data, nil
}

// Send writes v as one packet, with files travelling beside it. The caller keeps its own copies of files.
func (c *Conn) Send(v any, files ...*os.File) error {
	data, err := encode(v)
	if err != nil {
		return err
	}
	if len(files) > MaxFiles {
		return fmt.Errorf("a packet with %d files is too large: %w", len(files), syscall.EMSGSIZE)
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fd, err := Descriptor(f)
			if err != nil {
				return fmt.Errorf("send %s: %w", f.Name(), err)
			}
			fds[i] = fd
		}
		oob = unix.UnixRights(fds...)
	}
	_, _, err = c.uc.WriteMsgUnix(data, oob, nil)
	return err
}

// Receive reads one packet into v and returns the files that came with it, which are the caller's to close. The end
// of the connection is io.EOF. After ErrTruncated and ErrUnreadable, whose packet is lost, it may be called again.
func (c *Conn) Receive(v any) ([]*os.File, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.buf == nil {
		c.buf, c.oob = make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4*MaxFiles))
	}
	buf, oob := c.buf, c.oob
	n, oobn, flags, _, err := c.uc.ReadMsgUnix(buf, oob)
	if errors.Is(err, syscall.ECONNRESET) {
		// The other end closed with packets of ours unread. It says so once; what it had sent follows, and then the end.
		n, oobn, flags, _, err = c.uc.ReadMsgUnix(buf, oob)
	}
	if err != nil {
		return nil, err
	}
	if n == 0 && oobn == 0 {
		return nil, io.EOF
	}
	files, err := rights(oob[:oobn])
	if err == nil && flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0 {
		err = ErrTruncated
	}
	if err == nil {
		if err = json.Unmarshal(buf[:n], v); err != nil {
			err = fmt.Errorf("decode a packet of %d bytes: %w: %w", n, ErrUnreadable, err)
		}
	}
	if err != nil {
		CloseAll(files)
		return nil, err
	}
	return files, nil
}

// SetReadDeadline ends a Receive that is under way or to come at t, with os.ErrDeadlineExceeded; what has not been
// read stays for the next reader, which may be another process.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.uc.SetReadDeadline(t) }

// SetWriteDeadline bounds a Send to a process that does not read.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.uc.SetWriteDeadline(t) }

// File returns a duplicate of the connection's descriptor, to hand it to another process.
func (c *Conn) File() (*os.File, error) { return Dup(c.uc, "packet") }

// Close closes this process's copy.
func (c *Conn) Close() error { return c.uc.Close() }

// Dup duplicates the descriptor of c without touching the flags that it shares with its other holders.
// (*net.TCPListener).File and (*os.File).Fd would clear O_NONBLOCK for all of them.
func Dup(c syscall.Conn, name string) (*os.File, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", name, err)
	}
	var fd int
	var dupErr error
	if err := raw.Control(func(orig uintptr) { fd, dupErr = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", name, err)
	}
	if dupErr != nil {
		return nil, fmt.Errorf("duplicate %s: %w", name, dupErr)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Descriptor returns f's number and, unlike f.Fd, leaves its flags alone. It is valid until f is closed.
func Descriptor(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	n := -1
	if err := raw.Control(func(fd uintptr) { n = int(fd) }); err != nil {
		return -1, err
	}
	return n, nil
}

// CloseAll closes every file of fs that is not nil.
func CloseAll(fs []*os.File) {
	for _, f := range fs {
		if f != nil {
			f.Close()
		}
	}
}

func rights(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse the descriptors of a packet: %w", err)
	}
	var files []*os.File
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return files, fmt.Errorf("parse the descriptors of a packet: %w", err)
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd) // a no-op where MSG_CMSG_CLOEXEC exists
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}
