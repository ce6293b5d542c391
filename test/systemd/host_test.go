//go:build linux

package systemd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every wait for something that should happen soon. It is wide because it only decides how long a failure
// takes.
const patience = 60 * time.Second

// manager is what a host is run by.
type manager interface {
	// try runs a command in the host, and returns what it printed.
	try(args ...string) (string, error)
	// path is where a file of the host is seen from here.
	path(name string) string
	// dial connects within the host's network.
	dial(ctx context.Context, network, address string) (net.Conn, error)
	// folder is where tests put what they need, as the host sees it.
	folder() string
	// port is one that is free there: the wanted one where nobody else can have it.
	port(wanted int) string
}

// host is where a test installs services.
type host struct {
	t testing.TB
	manager
}

// booted is a systemd that runs, and the namespaces that it is PID 1 of.
type booted struct {
	cmd *exec.Cmd
	net *os.File // its network namespace
}

// boot starts the systemd of a root that ends with the test. Where none can run, reason says why.
func boot(t testing.TB, root string) (h *booted, reason string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, systemdBinary)); err != nil {
		return nil, err.Error() + " (make test-deps installs it)"
	}
	group, err := newGroup()
	if err != nil {
		return nil, err.Error()
	}
	t.Cleanup(func() { removeGroup(t, group) })
	log, err := os.Create(filepath.Join(t.TempDir(), "boot.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	h = &booted{cmd: exec.Command(self)}
	h.cmd.Env = append(os.Environ(), roleVariable+"=init", folderVariable+"="+t.TempDir(), cgroupVariable+"="+group, lowerVariable+"="+root)
	h.cmd.Stdout, h.cmd.Stderr = log, log
	h.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL, // a test that is interrupted leaves no systemd behind
	}
	began, ended := make(chan error, 1), make(chan struct{})
	go func() {
		runtime.LockOSThread() // Pdeathsig means the death of the thread that started it
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := h.cmd.Start()
		began <- err
		if err == nil {
			_ = h.cmd.Wait() // its status says nothing
		}
	}()
	if err := <-began; err != nil {
		return nil, fmt.Sprintf("namespaces: %v", err)
	}
	t.Cleanup(func() {
		_ = h.cmd.Process.Kill() // and with it the kernel kills all that are in its namespace
		<-ended
	})
	if h.net, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", h.cmd.Process.Pid)); err != nil {
		return nil, err.Error()
	}
	t.Cleanup(func() { h.net.Close() })
	var state string
	up := became(patience, func() bool {
		select {
		case <-ended:
			return true
		default:
		}
		state, _ = h.try("systemctl", "is-system-running")
		return state == "running" || state == "degraded"
	})
	select {
	case <-ended:
		text, _ := os.ReadFile(log.Name())
		return nil, "it did not start: " + strings.TrimSpace(string(text))
	default:
	}
	if !up {
		text, _ := os.ReadFile(log.Name())
		return nil, fmt.Sprintf("it does not get up (%s): %s", state, text)
	}
	return h, ""
}

// newGroup makes an empty control group.
func newGroup() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		before, after, _ := strings.Cut(sc.Text(), " - ")
		if fields := strings.Fields(before); strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 {
			group := filepath.Join(fields[4], "gapless-test-"+strconv.Itoa(os.Getpid()))
			return group, os.Mkdir(group, 0o755)
		}
	}
	return "", errors.New("no control groups of version 2 are mounted")
}

// removeGroup removes a control group and those in it, which are as good as empty: what was in them was killed.
func removeGroup(t testing.TB, group string) {
	if !became(patience, func() bool {
		err := filepath.WalkDir(group, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() && path != group {
				defer os.Remove(path)
			}
			return nil
		})
		return err == nil && (os.Remove(group) == nil || errors.Is(unix.Access(group, unix.F_OK), unix.ENOENT))
	}) {
		t.Errorf("the control group %s is not empty", group)
	}
}

// path is where a file of the host is seen from here.
func (h *booted) path(name string) string {
	return filepath.Join("/proc", strconv.Itoa(h.cmd.Process.Pid), "root", name)
}

// try runs a command in the host, and returns what it printed.
func (h *booted) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", strconv.Itoa(h.cmd.Process.Pid),
		"--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--"}, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (h *booted) folder() string { return "/opt/gapless-test" }

func (h *booted) port(wanted int) string { return strconv.Itoa(wanted) }

// must runs a command that succeeds.
func (h *host) must(args ...string) string {
	h.t.Helper()
	out, err := h.try(args...)
	if err != nil {
		h.t.Fatalf("%s: %v\n%s\n%s", strings.Join(args, " "), err, out, h.journal())
	}
	return out
}

// journal is the end of what was logged.
func (h *host) journal() string {
	out, _ := h.try("journalctl", "--no-pager", "--lines=600", "--output=short-precise")
	return "the journal:\n" + out
}

// property is what systemd says of a unit.
func (h *host) property(unit, name string) string {
	h.t.Helper()
	return h.must("systemctl", "show", "--property="+name, "--value", unit)
}

// dial connects within the host's network.
func (h *booted) dial(ctx context.Context, network, address string) (net.Conn, error) {
	runtime.LockOSThread()
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	defer here.Close()
	if err := unix.Setns(int(h.net.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("enter the network: %w", err)
	}
	// For an address without names to look up, the socket is made by this goroutine, and so by this thread.
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if failed := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); failed != nil {
		return conn, errors.Join(err, failed) // and the thread ends with its goroutine
	}
	runtime.UnlockOSThread()
	return conn, err
}

// eventually polls until ok; what it waits for is another process's state, which cannot be waited for.
func (h *host) eventually(what string, ok func() bool) {
	h.t.Helper()
	if !became(patience, ok) {
		h.t.Fatalf("not within %v: %s\n%s", patience, what, h.journal())
	}
}

func became(limit time.Duration, ok func() bool) bool {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			return ok()
		case <-tick.C:
		}
	}
	return true
}
