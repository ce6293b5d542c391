package control

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// TestServer_RefusesOtherUsers opens the socket to everybody, as a careless administrator might, and asks as another user.
func TestServer_RefusesOtherUsers(t *testing.T) {
	dir := shortDir(t)
	l, err := Listen(filepath.Join(dir, "c.sock"))
	if err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{dir: 0o755, l.Path(): 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	s := &server{log: zap.NewNop(), uid: os.Getuid(), room: make(chan struct{}, 1), ctx: t.Context()}
	if s.uid != 0 {
		s.uid++ // this user becomes the other one
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, l, s) }()
	conn := dialAsOther(t, l.Path())
	if _, err := io.WriteString(conn, "POST /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(answer), "HTTP/1.1 403 ") || !strings.Contains(string(answer), "may control") {
		t.Errorf("another user is answered %q", answer)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// dialAsOther connects as the user nobody if this user may change what it is.
func dialAsOther(t *testing.T, path string) net.Conn {
	t.Helper()
	if os.Getuid() != 0 {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	type dialed struct {
		file *os.File
		err  error
	}
	done := make(chan dialed, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and its user with it
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
			done <- dialed{err: errno}
			return
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		}
		done <- dialed{os.NewFile(uintptr(fd), "control"), err}
	}()
	d := <-done
	if d.err != nil {
		t.Fatal(d.err)
	}
	conn, err := net.FileConn(d.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.file.Close(); err != nil {
		t.Fatal(err)
	}
	return conn
}
