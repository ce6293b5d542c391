package procfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func path(pid int, parts ...string) string {
	return "/proc/" + strconv.Itoa(pid) + "/" + strings.Join(parts, "/")
}

// explain turns the kernel's answer about a process into an error that callers can match.
func explain(pid int, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return rightsError(pid, err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
		if alive(pid) { // /proc is mounted with hidepid
			return rightsError(pid, err)
		}
		return fmt.Errorf("read /proc of pid %d: %w", pid, os.ErrProcessDone)
	}
	return fmt.Errorf("read /proc of pid %d: %w", pid, err)
}

// alive asks the kernel rather than /proc, which may be mounted so that it hides other users' processes.
func alive(pid int) bool {
	if _, err := os.Stat(path(pid, "stat")); err == nil {
		return false // visible: then it was what we looked for in it that vanished, not the right to see it
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n == 0
}

func rightsError(pid int, err error) error {
	uid, gid := Owner(pid)
	return &RightsError{PID: pid, UID: uid, GID: gid, Err: err}
}

// Owner returns the effective user and group of a process, -1 where they cannot be read.
func Owner(pid int) (uid, gid int) {
	uid, gid = -1, -1
	text, err := os.ReadFile(path(pid, "status"))
	if err != nil {
		return uid, gid
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line) // real, effective, saved, file system
		if len(fields) < 3 {
			continue
		}
		switch fields[0] {
		case "Uid:":
			uid = orMinusOne(fields[2])
		case "Gid:":
			gid = orMinusOne(fields[2])
		}
	}
	return uid, gid
}

func orMinusOne(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		return -1
	}
	return n
}

// ReadStat reads one process. One that is gone is os.ErrProcessDone; a zombie is not gone, see Stat.Dead.
func ReadStat(pid int) (Stat, error) {
	text, err := os.ReadFile(path(pid, "stat"))
	if err != nil {
		return Stat{}, explain(pid, err)
	}
	return parseStat(string(text))
}

// Processes reads all processes that can be seen, zombies included, in the order of their PIDs.
func Processes() ([]Stat, error) {
	pids, err := numbers("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	all := make([]Stat, 0, len(pids))
	for _, pid := range pids {
		if s, err := ReadStat(pid); err == nil { // else it has just gone
			all = append(all, s)
		}
	}
	return all, nil
}

// numbers lists the numeric names in a directory, in ascending order.
func numbers(dir string) ([]int, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var list []int
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list, nil
}

// Children lists the PIDs of the living and dead children of a process that nobody has waited for.
func Children(pid int) ([]int, error) {
	tids, err := numbers(path(pid, "task"))
	if err != nil {
		return nil, explain(pid, err)
	}
	var list []int
	for _, tid := range tids {
		text, err := os.ReadFile(path(pid, "task", strconv.Itoa(tid), "children"))
		if errors.Is(err, unix.ENOENT) && tid == pid && !gone(pid) {
			return childrenByScan(pid) // a kernel without CONFIG_PROC_CHILDREN
		}
		if err != nil {
			continue // the thread has just ended; its children are now another thread's
		}
		for _, field := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				list = append(list, child)
			}
		}
	}
	return list, nil
}

func gone(pid int) bool {
	_, err := os.Stat(path(pid, "stat"))
	return err != nil
}

func childrenByScan(pid int) ([]int, error) {
	all, err := Processes()
	var list []int
	for _, s := range all {
		if s.Parent == pid {
			list = append(list, s.PID)
		}
	}
	return list, err
}

// Descendants lists children, grandchildren and so on, parents before their children; the process itself is not among
// them. What an ancestor in between has orphaned belongs to its reaper and is not found.
func Descendants(pid int) ([]Stat, error) {
	if _, err := ReadStat(pid); err != nil {
		return nil, err
	}
	var list []Stat
	seen := map[int]bool{pid: true} // a PID can be reused while we walk
	for queue := []int{pid}; len(queue) > 0; queue = queue[1:] {
		children, err := Children(queue[0])
		if err != nil {
			continue // has just gone
		}
		for _, child := range children {
			if s, err := ReadStat(child); err == nil && !seen[child] {
				seen[child] = true
				list, queue = append(list, s), append(queue, child)
			}
		}
	}
	return list, nil
}

// SessionMembers lists the processes of a session, its leader included if it still lives.
func SessionMembers(session int) ([]Stat, error) {
	all, err := Processes()
	return slices.DeleteFunc(all, func(s Stat) bool { return s.Session != session }), err
}

// Environ returns the environment with which a process was started. It takes the same rights as Waiting.
func Environ(pid int) ([]string, error) { return list(pid, "environ") }

// EnvironHas reports whether a process was started with a variable, given as KEY=VALUE.
func EnvironHas(pid int, assignment string) (bool, error) {
	env, err := Environ(pid)
	return slices.Contains(env, assignment), err
}

// Cmdline returns a process's arguments; a zombie and a kernel thread have none.
func Cmdline(pid int) ([]string, error) { return list(pid, "cmdline") }

func list(pid int, file string) ([]string, error) {
	text, err := os.ReadFile(path(pid, file))
	if err != nil {
		return nil, explain(pid, err)
	}
	text = bytes.TrimSuffix(text, []byte{0})
	if len(text) == 0 {
		return nil, nil
	}
	return strings.Split(string(text), "\x00"), nil
}

// Exe returns the path of a process's program, with " (deleted)" behind it when the file is gone.
func Exe(pid int) (string, error) {
	exe, err := os.Readlink(path(pid, "exe"))
	return exe, explain(pid, err)
}

// OpenFiles counts the descriptors of a process.
func OpenFiles(pid int) (int, error) {
	// From Linux 6.2 the size of the directory is the count.
	if info, err := os.Stat(path(pid, "fd")); err == nil && info.Size() > 0 {
		return int(info.Size()), nil
	}
	fds, err := numbers(path(pid, "fd"))
	return len(fds), explain(pid, err)
}

// ReadMemory reads what a process occupies. PSS takes the same rights as Waiting and is 0 without them.
func ReadMemory(pid int) (Memory, error) {
	text, err := os.ReadFile(path(pid, "statm"))
	if err != nil {
		return Memory{}, explain(pid, err)
	}
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return Memory{}, fmt.Errorf("parse statm of pid %d: %.64q", pid, text)
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return Memory{}, fmt.Errorf("parse statm of pid %d: %w", pid, err)
	}
	m := Memory{RSS: pages * int64(os.Getpagesize())}
	rollup, err := os.ReadFile(path(pid, "smaps_rollup"))
	if err != nil {
		return m, nil // documented: RSS alone
	}
	for line := range strings.Lines(string(rollup)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "Pss:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return m, fmt.Errorf("parse smaps_rollup of pid %d: %w", pid, err)
			}
			m.PSS = kib << 10
		}
	}
	return m, nil
}

// SocketInode returns the inode by which /proc names a socket, shared by all its duplicates in all processes.
func SocketInode(c syscall.Conn) (uint64, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("read the inode of a socket: %w", err)
	}
	var st unix.Stat_t
	if ctlErr := raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }); ctlErr != nil {
		err = ctlErr
	}
	if err != nil {
		return 0, fmt.Errorf("read the inode of a socket: %w", err)
	}
	return st.Ino, nil
}
