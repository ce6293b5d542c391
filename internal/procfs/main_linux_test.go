package procfs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"gapless/internal/pidfd"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const (
	roleVar     = "GAPLESS_TEST_ROLE"
	noPtraceVar = "GAPLESS_TEST_NO_PTRACE"
)

// TestMain makes the test binary the workers and the helper too.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "probe" {
		if err := ProbeMain(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 2 && os.Args[1] == "mute-probe" {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	if role := os.Getenv(roleVar); role != "" {
		work(role)
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// work plays one kind of worker, with the listening socket as descriptor 3, until its standard input ends.
func work(role string) {
	const listener = 3
	block := func(err error) { fmt.Fprintln(os.Stderr, role, err); os.Exit(3) }
	switch role {
	case "idle":
	case "epoll":
		l, err := net.FileListener(os.NewFile(listener, "listener"))
		if err != nil {
			block(err)
		}
		go l.Accept()
	case "accept":
		unix.SetNonblock(listener, false)
		go func() { _, _, err := unix.Accept(listener); block(err) }()
	case "accept4":
		unix.SetNonblock(listener, false)
		go func() { _, _, err := unix.Accept4(listener, 0); block(err) }()
	case "accept-duplicate":
		unix.SetNonblock(listener, false)
		unix.Dup3(listener, 200, 0)
		go func() { _, _, err := unix.Accept(200); block(err) }()
	case "poll":
		fds := []unix.PollFd{{Fd: -1}, {Fd: listener, Events: unix.POLLIN}}
		go func() { _, err := unix.Poll(fds, -1); block(err) }()
	case "poll-for-writing":
		fds := []unix.PollFd{{Fd: listener, Events: unix.POLLPRI}}
		go func() { _, err := unix.Poll(fds, -1); block(err) }()
	case "ppoll":
		fds := []unix.PollFd{{Fd: listener, Events: unix.POLLIN}}
		go func() { _, err := unix.Ppoll(fds, nil, nil); block(err) }()
	case "select":
		unix.Dup3(listener, 77, 0)
		set := unix.FdSet{}
		set.Set(77)
		go func() { _, err := unix.Select(78, &set, nil, nil, nil); block(err) }()
	case "parent-of-epoll", "undumpable-epoll":
		if role == "undumpable-epoll" {
			unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
			l, err := net.FileListener(os.NewFile(listener, "listener"))
			if err != nil {
				block(err)
			}
			go l.Accept()
			break
		}
		// Bare descriptors: an os.File of the socket would already be in this process's own epoll set.
		p, err := pidfd.Start("/proc/self/exe", []string{"worker"}, &syscall.ProcAttr{
			Env: []string{roleVar + "=epoll"}, Files: []uintptr{0, 1, 2, listener},
		})
		if err != nil {
			block(err)
		}
		p.Status()
		return
	default:
		block(errors.New("no such role"))
	}
	fmt.Println("started")
	io.Copy(io.Discard, os.Stdin)
}

// listen opens a socket on the loopback interface that the test itself does not accept from.
func listen(t *testing.T) (f *os.File, inodes map[uint64]bool, addr string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	f = os.NewFile(uintptr(fd), "listener")
	t.Cleanup(func() { f.Close() })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 16)); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	ino, err := SocketInode(f)
	if err != nil {
		t.Fatal(err)
	}
	return f, map[uint64]bool{ino: true}, net.JoinHostPort("127.0.0.1", strconv.Itoa(name.(*unix.SockaddrInet4).Port))
}

// worker starts this binary in a role and waits until it says that it has started.
func worker(t *testing.T, role string, l *os.File, cred *syscall.Credential) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{roleVar + "=" + role, "GAPLESS_TEST_MARK=a b"}
	cmd.ExtraFiles = []*os.File{l}
	cmd.Stderr = os.Stderr
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: cred}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if _, err := SignalSession(cmd.Process.Pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		cmd.Process.Kill()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); strings.TrimSpace(line) != "started" {
		t.Fatalf("worker %s: %q, %v", role, line, err)
	}
	return cmd
}
