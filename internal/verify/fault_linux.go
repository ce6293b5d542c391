package verify

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gapless/internal/pidfd"
	"gapless/internal/procfs"
)

// killProcess sends KILL to a process that has been seen just now.
func killProcess(pid int) error {
	p, err := pidfd.Open(pid)
	if err != nil {
		return err
	}
	defer p.Close() //nolint:errcheck // nothing is written to it
	return p.Signal(syscall.SIGKILL)
}

// kill kills a worker and tells which connections it had. It is stopped first: from then on it accepts nothing and
// answers nothing, so that the list is that of the moment of its death.
func (s *Server) kill(pid int) (Outcome, error) {
	p, err := pidfd.Open(pid)
	if err != nil {
		return Outcome{}, err
	}
	defer p.Close() //nolint:errcheck // nothing is written to it
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return Outcome{}, err
	}
	own, err := connections(pid, s.URL.Port())
	at := time.Now()
	if kerr := p.Signal(syscall.SIGKILL); err == nil {
		err = kerr
	}
	return Outcome{Own: own, OwnAt: at}, err
}

// stopPatienceWorker is how long a process may take to stop.
const stopPatienceWorker = time.Second

// connections returns the ports of the clients that a stopped process and its descendants are connected with at a port.
func connections(pid int, port string) (map[int]bool, error) {
	if err := awaitStopped(pid); err != nil {
		return nil, err
	}
	sockets := map[string]bool{}
	pids := []int{pid}
	family, err := procfs.Descendants(pid)
	if err != nil {
		return nil, err
	}
	for _, d := range family {
		pids = append(pids, d.PID)
	}
	for _, p := range pids {
		links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p))
		if err != nil {
			return nil, err
		}
		for _, l := range links {
			if to, err := os.Readlink(l); err == nil {
				if inode, ok := strings.CutPrefix(to, "socket:["); ok {
					sockets[strings.TrimSuffix(inode, "]")] = true
				}
			}
		}
	}
	if len(sockets) == 0 {
		return nil, errors.New("its descriptors cannot be read: run verify as its user")
	}
	own := map[int]bool{}
	for _, table := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if errors.Is(err, os.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(text)) {
			if local, remote, inode, ok := parseSocket(line); ok && sockets[inode] && remote != 0 && strconv.Itoa(local) == port {
				own[remote] = true
			}
		}
	}
	return own, nil
}

// awaitStopped waits until no thread of a process runs any more.
func awaitStopped(pid int) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for give := time.Now().Add(stopPatienceWorker); ; <-tick.C {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(tasks) == 0 {
			return errors.Join(err, os.ErrProcessDone)
		}
		running := 0
		for _, t := range tasks {
			text, err := os.ReadFile(t)
			if err != nil {
				continue // a thread that has ended
			}
			if state := stateOf(string(text)); state != 'T' && state != 't' {
				running++
			}
		}
		if running == 0 {
			return nil
		}
		if time.Now().After(give) {
			return fmt.Errorf("it does not stop within %v", stopPatienceWorker)
		}
	}
}

// stateOf is the state in a line of /proc/PID/stat, which stands behind the name; 0 if there is none.
func stateOf(stat string) byte {
	i := strings.LastIndexByte(stat, ')')
	if i < 0 || i+2 >= len(stat) {
		return 0
	}
	return stat[i+2]
}

// parseSocket reads a line of /proc/net/tcp: the ports and the inode.
func parseSocket(line string) (local, remote int, inode string, ok bool) {
	f := strings.Fields(line)
	if len(f) < 10 {
		return 0, 0, "", false
	}
	if local, ok = portOf(f[1]); !ok {
		return 0, 0, "", false
	}
	if remote, ok = portOf(f[2]); !ok {
		return 0, 0, "", false
	}
	return local, remote, f[9], true
}

func portOf(address string) (int, bool) {
	_, hex, ok := strings.Cut(address, ":")
	n, err := strconv.ParseUint(hex, 16, 16)
	return int(n), ok && err == nil
}
