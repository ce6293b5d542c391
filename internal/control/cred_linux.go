package control

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// peer is who is at the other end of a unix socket, as the kernel says: the one who connected, or, for a client, the
// one who began to listen.
type peer struct{ uid, pid int }

func peerOf(conn syscall.Conn) (peer, error) {
	rc, err := conn.SyscallConn()
	if err != nil {
		return peer{}, fmt.Errorf("read the credentials of a peer: %w", err)
	}
	var cred *unix.Ucred
	var gerr error
	err = rc.Control(func(fd uintptr) { cred, gerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, os.NewSyscallError("getsockopt", gerr)); err != nil {
		return peer{}, fmt.Errorf("read the credentials of a peer: %w", err)
	}
	return peer{uid: int(cred.Uid), pid: int(cred.Pid)}, nil
}
