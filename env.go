package gapless

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// The variables by which a manager speaks to a worker. They are read once and
// then removed, so that children of the program do not take them for theirs.
// NOTIFY_SOCKET stays: the program may have more to say over it, such as its
// status or that its watchdog is alive.
const (
	envPID        = "LISTEN_PID"
	envFDs        = "LISTEN_FDS"
	envNames      = "LISTEN_FDNAMES"
	envNotify     = "NOTIFY_SOCKET"
	envWorker     = "GAPLESS_WORKER"
	envGeneration = "GAPLESS_GENERATION"
	envChannel    = "GAPLESS_CHANNEL"
	envHandoff    = "GAPLESS_HANDOFF"
	envTickets    = "GAPLESS_TICKETS"
)

// firstFD is where systemd's protocol puts the first socket.
const firstFD = 3

// environ is what a manager said.
type environ struct {
	worker, generation        int
	names                     []string // of the descriptors from firstFD on
	notify                    string
	channel, handoff, tickets int // descriptors, -1 if there is none
}

// readEnviron reads the variables through get and removes them through unset.
// Those that are addressed to another process are left alone.
func readEnviron(pid int, get func(string) (string, bool), unset func(string) error) (environ, error) {
	e := environ{channel: -1, handoff: -1, tickets: -1}
	var errs []error
	take := func(key string) string {
		v, ok := get(key)
		if !ok {
			return ""
		}
		errs = append(errs, unset(key))
		return v
	}
	number := func(key string, none int) int {
		v := take(key)
		if v == "" {
			return none
		}
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 {
			errs = append(errs, fmt.Errorf("%s: want a number, got %q", key, v))
			return none
		}
		return n
	}
	e.worker, e.generation = number(envWorker, 0), number(envGeneration, 0)
	e.channel, e.handoff, e.tickets = number(envChannel, -1), number(envHandoff, -1), number(envTickets, -1)
	e.notify, _ = get(envNotify)
	if v, ok := get(envPID); ok && v == strconv.Itoa(pid) {
		_ = take(envPID)
		n := number(envFDs, 0)
		names := strings.Split(take(envNames), ":")
		for i := range n {
			name := ""
			if i < len(names) {
				name = names[i]
			}
			e.names = append(e.names, name)
		}
	}
	return e, errors.Join(errs...)
}

// inherited is a listener that a manager opened.
type inherited struct {
	net.Listener
	name    string
	taken   bool // by Serve or Listen
	serving bool // somebody has waited for connections
}

// open makes a listener of descriptor fd.
func openListener(fd int, name string) (*inherited, error) {
	syscall.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), name)
	if f == nil {
		return nil, fmt.Errorf("listener %q: descriptor %d is not open", name, fd)
	}
	defer f.Close() // FileListener has its own
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listener %q: descriptor %d: %w", name, fd, err)
	}
	return &inherited{Listener: l, name: name}, nil
}

// splitAddr splits "NAME=ADDR"; what has no "=" is an address.
func splitAddr(s string) (name, addr string) {
	if n, a, ok := strings.Cut(s, "="); ok && !strings.ContainsAny(n, ":/") {
		return n, a
	}
	return "", s
}

// matches says whether l is what addr asks for.
func matches(l net.Addr, addr string) bool {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		abs, err := filepath.Abs(path)
		return l.Network() == "unix" && err == nil && (l.String() == path || l.String() == abs)
	}
	t, ok := l.(*net.TCPAddr)
	if !ok {
		return false
	}
	want, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil || want.Port != t.Port || want.Port == 0 {
		return false
	}
	return want.IP == nil || want.IP.IsUnspecified() && t.IP.IsUnspecified() || want.IP.Equal(t.IP)
}

// listen opens addr itself, as there is no manager.
func listen(addr string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		return net.Listen("unix", path)
	}
	return net.Listen("tcp", addr)
}
