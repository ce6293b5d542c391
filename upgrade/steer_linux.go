package upgrade

import (
	"os"
	"runtime"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// attach replaces the program of the group that file belongs to, for all its sockets at once.
func attach(file *os.File, code []bpf.RawInstruction) error {
	return withFd(file, func(fd int) error { return attachFd(fd, code) })
}

func attachFd(fd int, code []bpf.RawInstruction) error {
	filter := make([]unix.SockFilter, len(code))
	for i, c := range code {
		filter[i] = unix.SockFilter{Code: c.Op, Jt: c.Jt, Jf: c.Jf, K: c.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &prog)
	runtime.KeepAlive(filter)
	return os.NewSyscallError("attach program", err)
}

// waitProgram waits for a grace period of the kernel's RCU, under whose read lock programs run.
func waitProgram() {
	const membarrierCmdGlobal = 1
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierCmdGlobal, 0, 0); errno != 0 {
		<-time.After(programGrace) // kernels with nohz_full and some sandboxes refuse it
	}
}

// reading is what the kernel says about one listening socket.
type reading struct {
	state   uint8 // tcpListening, unless somebody called shutdown(2) on it
	queue   int   // connections that wait to be accepted
	backlog int   // how many may
}

const tcpListening = 10 // TCP_LISTEN

// read takes a reading; for a socket of another kind than TCP it fails.
func read(file *os.File) (r reading, err error) {
	err = withFd(file, func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return os.NewSyscallError("getsockopt TCP_INFO", err)
		}
		// On a listening socket these two fields carry the accept queue and its limit.
		r = reading{state: info.State, queue: int(info.Unacked), backlog: int(info.Sacked)}
		return nil
	})
	return r, err
}

// listenAgain makes a socket listen that shutdown(2) took out of its group, which appends it there, and gives a socket
// that still listens its full backlog back, which a worker's own listen(2) may have changed.
func listenAgain(file *os.File) error {
	return withFd(file, func(fd int) error { return os.NewSyscallError("listen", unix.Listen(fd, somaxconn())) })
}
