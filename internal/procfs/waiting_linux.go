package procfs

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Waiting reports whether a process or one of its descendants waits for connections on a listening socket with one of
// these inodes (SocketInode). It finds sockets in epoll sets, and threads that are blocked in accept, poll or select;
// it does not find io_uring. A Go program is seen from when it wraps the non-blocking socket in an os.File, which
// puts it into the runtime's epoll set, a moment before it accepts.
//
// A process that is gone is os.ErrProcessDone. If nothing was found and a process may not be read, the error is a
// *RightsError, which is ErrNoRights.
func Waiting(pid int, inodes map[uint64]bool) (Evidence, error) {
	return waiting(pid, func(pid int) (Evidence, error) { return look(pid, inodes) })
}

// waiting asks look about a process and its descendants until one of them waits.
func waiting(pid int, look func(pid int) (Evidence, error)) (Evidence, error) {
	self, err := ReadStat(pid)
	if err != nil {
		return Evidence{}, err
	}
	if self.Dead() {
		return Evidence{}, fmt.Errorf("look into pid %d: %w", pid, os.ErrProcessDone)
	}
	descendants, err := Descendants(pid)
	if err != nil {
		return Evidence{}, err
	}
	pids := []int{pid}
	for _, s := range descendants {
		pids = append(pids, s.PID)
	}
	var none Evidence
	var denied error
	for _, p := range pids {
		seen, err := look(p)
		switch {
		case err == nil && seen.Found():
			return seen, nil
		case err == nil:
			none.Blind = max(none.Blind, seen.Blind)
		case errors.Is(err, os.ErrProcessDone) && p != pid:
		case errors.Is(err, os.ErrProcessDone):
			return Evidence{}, err
		case denied == nil:
			denied = err
		}
	}
	return none, denied
}

// look looks into one process.
func look(pid int, inodes map[uint64]bool) (Evidence, error) {
	fds, err := numbers(path(pid, "fd"))
	if err != nil {
		return Evidence{}, explain(pid, err)
	}
	sockets := map[int]bool{} // descriptors of pid that are one of the listening sockets
	for _, fd := range fds {
		name := strconv.Itoa(fd)
		link, err := os.Readlink(path(pid, "fd", name))
		if errors.Is(err, unix.ENOENT) {
			continue // closed meanwhile
		}
		if err != nil {
			return Evidence{}, explain(pid, err)
		}
		if link == "anon_inode:[eventpoll]" {
			info, err := os.ReadFile(path(pid, "fdinfo", name))
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				return Evidence{}, explain(pid, err)
			}
			if watches(string(info), inodes) {
				return Evidence{PID: pid, How: Epoll}, nil
			}
		}
		if ino, ok := strings.CutPrefix(link, "socket:["); ok {
			n, err := strconv.ParseUint(strings.TrimSuffix(ino, "]"), 10, 64)
			sockets[fd] = err == nil && inodes[n]
		}
	}
	return threads(pid, sockets)
}

// threads looks for a thread that is blocked in a call that waits on one of the descriptors.
func threads(pid int, sockets map[int]bool) (Evidence, error) {
	tids, err := numbers(path(pid, "task"))
	if err != nil {
		return Evidence{}, explain(pid, err)
	}
	for _, tid := range tids {
		text, err := os.ReadFile(path(pid, "task", strconv.Itoa(tid), "syscall"))
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
			return Evidence{Blind: pid}, nil // needs more than the descriptors did; epoll was readable, so this is no error
		}
		if err != nil {
			continue // the thread ended, or the kernel was built without this file
		}
		number, args, ok := parseSyscall(string(text))
		if !ok {
			continue
		}
		switch number {
		case sysAccept, sysAccept4:
			if sockets[int(int32(args[0]))] {
				return Evidence{PID: pid, How: Accept}, nil
			}
		case sysPoll, sysPpoll:
			if polls(pid, args[0], args[1], sockets) {
				return Evidence{PID: pid, How: Poll}, nil
			}
		case sysSelect, sysPselect6:
			if selects(pid, args[0], args[1], sockets) {
				return Evidence{PID: pid, How: Poll}, nil
			}
		}
	}
	return Evidence{}, nil
}

// maxPolled bounds how many descriptors of one poll or select are looked at.
const maxPolled = 4096

// pollReadNormal is POLLRDNORM, which x/sys does not have: another name for POLLIN on a socket.
const pollReadNormal = 0x40

// polls reads the array that a thread of pid waits on.
func polls(pid int, addr, n uint64, sockets map[int]bool) bool {
	const size = uint64(unsafe.Sizeof(unix.PollFd{}))
	mem := remote(pid, addr, min(n, maxPolled)*size)
	for ; len(mem) >= int(size); mem = mem[size:] {
		p := (*unix.PollFd)(unsafe.Pointer(&mem[0]))
		if p.Events&(unix.POLLIN|pollReadNormal) != 0 && sockets[int(p.Fd)] {
			return true
		}
	}
	return false
}

// selects reads the set of descriptors that a thread of pid waits to read from; the kernel overwrites it only when
// the call returns.
func selects(pid int, n, addr uint64, sockets map[int]bool) bool {
	if addr == 0 {
		return false
	}
	const word = uint64(unsafe.Sizeof(uintptr(0)))
	mem := remote(pid, addr, (min(n, maxPolled)+word*8-1)/(word*8)*word)
	for fd, listening := range sockets {
		// Words are in the machine's byte order; both that are supported are little-endian, so bytes are in order.
		if listening && fd/8 < len(mem) && mem[fd/8]&(1<<(fd%8)) != 0 {
			return true
		}
	}
	return false
}

// remote copies n bytes from another process. What cannot be read is empty: the thread may have gone on.
func remote(pid int, addr, n uint64) []byte {
	if n == 0 || addr == 0 {
		return nil
	}
	buf := make([]byte, n)
	local := []unix.Iovec{{Base: &buf[0]}}
	local[0].SetLen(len(buf))
	got, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(addr), Len: len(buf)}}, 0)
	if err != nil {
		return nil
	}
	return buf[:got]
}
