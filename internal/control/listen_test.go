package control

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// shortDir is a t.TempDir whose path leaves room for the name of a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "gc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestListen_IsPrivate(t *testing.T) {
	// The umask belongs to the whole process, so this test must not run beside others.
	for _, umask := range []int{0, 0o022, 0o777} {
		folder := filepath.Join(shortDir(t), "gapless")
		path := filepath.Join(folder, "a.sock")
		if umask == 0o777 {
			folder = filepath.Dir(folder) // made before: nobody can work in a folder of mode 0
			path = filepath.Join(folder, "a.sock")
		}
		old := syscall.Umask(umask)
		l, err := Listen(path)
		syscall.Umask(old)
		if err != nil && umask == 0o777 && os.Getuid() != 0 {
			continue
		}
		if err != nil {
			t.Fatalf("umask %o: %v", umask, err)
		}
		for name, want := range map[string]fs.FileMode{path: 0o600 | fs.ModeSocket, folder: 0o700 | fs.ModeDir} {
			info, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode() != want {
				t.Errorf("umask %o: %s has mode %v, want %v", umask, filepath.Base(name), info.Mode(), want)
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		left, err := os.ReadDir(folder)
		if err != nil || len(left) != 0 {
			t.Errorf("after Close the folder holds %v, %v", left, err)
		}
	}
}

func TestListen_ReplacesTheDeadAndRefusesTheLiving(t *testing.T) {
	path := filepath.Join(shortDir(t), "a.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(path)
	if err != nil {
		t.Fatalf("with a dead socket in the way: %v", err)
	}
	_, err = Listen(path)
	if !errors.Is(err, ErrTaken) {
		t.Errorf("with a living socket in the way: %v, want ErrTaken", err)
	}
	if conn, err := net.Dial("unix", path); err != nil {
		t.Errorf("the first is unreachable after the second has failed: %v", err)
	} else if err := conn.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}

func TestListen_OneOfManyWins(t *testing.T) {
	path := filepath.Join(shortDir(t), "a.sock")
	var wg sync.WaitGroup
	won := make(chan *Listener, 16)
	for range cap(won) {
		wg.Go(func() {
			l, err := Listen(path)
			switch {
			case err == nil:
				won <- l
			case !errors.Is(err, ErrTaken):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	close(won)
	if len(won) != 1 {
		t.Errorf("%d won, want 1", len(won))
	}
	for l := range won {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Errorf("the winner is unreachable: %v", err)
		} else {
			_ = conn.Close()
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestListener_CloseLeavesAnotherSocketAlone(t *testing.T) {
	path := filepath.Join(shortDir(t), "a.sock")
	first, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the second socket went with the first: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}

func TestSocketsOf_FindsAListenerByItsPath(t *testing.T) {
	if runtime.GOOS != "linux" {
		return
	}
	l, err := Listen(filepath.Join(shortDir(t), "a b.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if got := SocketsOf(os.Getpid()); !slices.Contains(got, l.Path()) {
		t.Errorf("SocketsOf = %q, want %q among them", got, l.Path())
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if got := SocketsOf(os.Getpid()); slices.Contains(got, l.Path()) {
		t.Errorf("SocketsOf = %q after Close", got)
	}
}

func TestListen_Refuses(t *testing.T) {
	dir := shortDir(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(dir, "file.sock"), nil, 0o600))
	must(os.Mkdir(filepath.Join(dir, "open"), 0o700))
	must(os.Chmod(filepath.Join(dir, "open"), 0o777))
	for _, tt := range []struct{ name, path, want string }{
		{"a file", filepath.Join(dir, "file.sock"), "no socket"},
		{"a folder that is a file", filepath.Join(dir, "file.sock", "a.sock"), "--control"},
		{"a folder open to others", filepath.Join(dir, "open", "a.sock"), "others may write"},
		{"a long path", filepath.Join(dir, strings.Repeat("a", 200)), "shorter"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := Listen(tt.path)
			if err == nil {
				t.Fatal(l.Close())
			}
			if !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), tt.path) {
				t.Errorf("the error is %q; it should name the path and say %q", err, tt.want)
			}
		})
	}
	t.Run("a folder of another user", func(t *testing.T) {
		if err := prepare(dir, os.Getuid()+1); os.Getuid() != 0 && (err == nil || !strings.Contains(err.Error(), "belongs to user")) {
			t.Errorf("prepare = %v", err)
		}
	})
	t.Run("a path at the limit", func(t *testing.T) {
		path := filepath.Join(dir, strings.Repeat("a", maxSocketPath-len(dir)-1))
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}
