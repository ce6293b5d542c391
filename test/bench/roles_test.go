//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"gapless"
	"gapless/internal/app"

	"golang.org/x/sys/unix"
)

// The roles of this binary.
const (
	roleVariable = "BENCH_ROLE" // not GAPLESS_…: workers get none of those
	roleBare     = "bare"       // net/http alone
	roleBareFour = "bare-four"  // four such processes at one address, without gapless
	roleBareMore = "bare-more"  // one of the other three
	roleWrapped  = "wrapped"    // the same server through gapless.Serve

	addressVariable = "BENCH_ADDRESS" // of roleBareMore
)

// play is this binary as a server. All roles are the same server with the same handler. The bare ones call nothing of
// package gapless, which would begin to listen for signals.
func play(role string) error {
	switch role {
	case roleWrapped:
		return gapless.Serve(&http.Server{Handler: app.New(app.Info{Generation: gapless.Generation(), PID: os.Getpid()})})
	case roleBare, roleBareFour:
		l, err := listen("127.0.0.1:0")
		if err != nil {
			return err
		}
		if role == roleBareFour {
			pipes, err := startMore(3, l.Addr().String())
			if err != nil {
				return err
			}
			defer runtime.KeepAlive(pipes)
		}
		fmt.Println(l.Addr())
		return serve(l)
	case roleBareMore:
		l, err := listen(os.Getenv(addressVariable))
		if err != nil {
			return err
		}
		fmt.Println(l.Addr())
		go func() { // the pipe ends with the first of the four
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}()
		return serve(l)
	}
	return errors.New("unknown role " + role)
}

// listen makes a socket that several processes can have for one address. It is not MPTCP, Go's default, as gapless's
// sockets are not: that would be a difference of protocols.
func listen(addr string) (net.Listener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return errors.Join(err, failed)
	}}
	lc.SetMultipathTCP(false)
	return lc.Listen(context.Background(), "tcp", addr)
}

func serve(l net.Listener) error {
	srv := &http.Server{Handler: app.New(app.Info{PID: os.Getpid()})}
	return srv.Serve(l)
}

// startMore starts that many more servers at an address and waits until each listens. They end with this process, or when
// the pipes are closed.
func startMore(n int, addr string) (pipes []io.Closer, err error) {
	for range n {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), roleVariable+"="+roleBareMore, addressVariable+"="+addr)
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		pipes = append(pipes, in)
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		if _, err := out.Read(make([]byte, 1)); err != nil {
			return nil, fmt.Errorf("the address of a bare server: %w", err)
		}
	}
	return pipes, nil
}
