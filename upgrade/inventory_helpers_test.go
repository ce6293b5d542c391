package upgrade

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// fakeFiles stands for tableflip's Fds: it keeps duplicates by name.
type fakeFiles struct {
	mu    sync.Mutex
	files map[string]*os.File
}

func newFakeFiles(t *testing.T) *fakeFiles {
	t.Helper()
	f := &fakeFiles{files: make(map[string]*os.File)}
	t.Cleanup(func() {
		for _, file := range f.files {
			_ = file.Close()
		}
	})
	return f
}

func (f *fakeFiles) File(name string) (*os.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.files[name] == nil {
		return nil, nil
	}
	return dupFile(f.files[name])
}

func (f *fakeFiles) AddFile(name string, file *os.File) error {
	dup, err := dupFile(file)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.files[name]; old != nil {
		_ = old.Close()
	}
	f.files[name] = dup
	return nil
}

func dupFile(file *os.File) (*os.File, error) {
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	var dup uintptr
	var errno syscall.Errno
	if err := conn.Control(func(fd uintptr) {
		dup, _, errno = syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return nil, err
	}
	if errno != 0 {
		return nil, errno
	}
	return os.NewFile(dup, file.Name()), nil
}

func newTestInventory(t *testing.T, files Files, opts InventoryOptions) *Inventory {
	t.Helper()
	inv := NewInventory(files, opts)
	t.Cleanup(func() { _ = inv.Close() })
	return inv
}

// claim makes an inventory with one address.
func claim(t *testing.T, addr string, mode Mode) *Inventory {
	t.Helper()
	inv := newTestInventory(t, newFakeFiles(t), InventoryOptions{})
	if err := inv.Claim(parse(t, addr), mode); err != nil {
		t.Fatal(err)
	}
	return inv
}

func parse(t *testing.T, text string) Address {
	t.Helper()
	addr, err := ParseAddress(text)
	if err != nil {
		t.Fatal(err)
	}
	named, err := NameAddresses([]Address{addr})
	if err != nil {
		t.Fatal(err)
	}
	return named[0]
}

// listenOnLane is a worker's view of a lane: a listener on a descriptor of its own.
func listenOnLane(t *testing.T, l *Lane) net.Listener {
	t.Helper()
	dup, err := dupFile(l.File())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dup.Close() }()
	listener, err := net.FileListener(dup)
	if err != nil {
		t.Fatal(err)
	}
	if u, ok := listener.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return listener
}

// echoName serves a lane: each connection is told the lane's name and closed.
func echoName(t *testing.T, l *Lane) {
	t.Helper()
	listener := listenOnLane(t, l)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = fmt.Fprint(c, l.Name())
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = listener.Close(); <-done })
}

// who asks an address once which lane answers.
func who(t *testing.T, addr Address) string {
	t.Helper()
	name, err := ask(addr)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func ask(addr Address) (string, error) { return askFrom(addr, "") }

// askFrom asks from a local IP address, any if it is "".
func askFrom(addr Address, local string) (string, error) {
	d := net.Dialer{Timeout: 10 * time.Second}
	if local != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(local)}
	}
	c, err := d.DialContext(context.Background(), addr.Network, addr.Addr)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

// dial opens a connection that is closed when the test ends.
func dial(t *testing.T, addr Address) net.Conn {
	t.Helper()
	d := net.Dialer{Timeout: 10 * time.Second}
	c, err := d.DialContext(t.Context(), addr.Network, addr.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}
