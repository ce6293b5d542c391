package procfs

import (
	"net"
	"os"
	"slices"
	"testing"
)

func listening(t *testing.T, network, addr string) (net.Listener, uint64) {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	inode, err := SocketInode(l.(*net.TCPListener))
	if err != nil {
		t.Fatal(err)
	}
	return l, inode
}

// Where a process listens is told, but for the sockets that it was given.
func TestElsewhere(t *testing.T) {
	given, inode := listening(t, "tcp4", "127.0.0.1:0")
	own, _ := listening(t, "tcp4", "127.0.0.1:0")
	six, _ := listening(t, "tcp6", "[::1]:0")
	got := Elsewhere(os.Getpid(), map[uint64]bool{inode: true})
	for _, l := range []net.Listener{own, six} {
		if !slices.Contains(got, l.Addr().String()) {
			t.Errorf("%s is missing in %q", l.Addr(), got)
		}
	}
	if slices.Contains(got, given.Addr().String()) {
		t.Errorf("%q names %s, which was given", got, given.Addr())
	}
	f, inodes, addr := listen(t)
	child := worker(t, "idle", f, nil).Process.Pid
	if got := Elsewhere(child, inodes); len(got) > 0 {
		t.Errorf("a process that has only what it was given listens on %q", got)
	}
	if got := Elsewhere(child, nil); !slices.Equal(got, []string{addr}) {
		t.Errorf("it listens on %q, want %s", got, addr)
	}
}

// A connection counts for whoever accepted it, and at the socket that it was made to.
func TestTook(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6"} {
		t.Run(network, func(t *testing.T) {
			addr := map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::]:0"}[network]
			l, inode := listening(t, network, addr)
			_, other := listening(t, network, addr)
			f, _, _ := listen(t)
			child := worker(t, "idle", f, nil).Process.Pid
			_, port, _ := net.SplitHostPort(l.Addr().String())
			c, err := net.Dial("tcp", net.JoinHostPort(map[string]string{"tcp4": "127.0.0.1", "tcp6": "::1"}[network], port))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if Took(os.Getpid(), map[uint64]bool{inode: true}) {
				t.Error("it counts before it was accepted")
			}
			a, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			if !Took(os.Getpid(), map[uint64]bool{inode: true}) {
				t.Error("it does not count after it was accepted")
			}
			if Took(os.Getpid(), map[uint64]bool{other: true}) {
				t.Error("it counts at another socket")
			}
			if Took(child, map[uint64]bool{inode: true}) {
				t.Error("it counts for another process")
			}
		})
	}
}
