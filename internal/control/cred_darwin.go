package control

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// peer is who is at the other end of a unix socket, as the kernel says.
type peer struct{ uid, pid int }

func peerOf(conn syscall.Conn) (peer, error) {
	rc, err := conn.SyscallConn()
	if err != nil {
		return peer{}, fmt.Errorf("read the credentials of a peer: %w", err)
	}
	var p peer
	var cerr, perr error
	err = rc.Control(func(fd uintptr) {
		var cred *unix.Xucred
		if cred, cerr = unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED); cerr == nil {
			p.uid = int(cred.Uid)
		}
		p.pid, perr = unix.GetsockoptInt(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERPID)
	})
	if err = errors.Join(err, os.NewSyscallError("getsockopt", cerr), os.NewSyscallError("getsockopt", perr)); err != nil {
		return peer{}, fmt.Errorf("read the credentials of a peer: %w", err)
	}
	return p, nil
}
