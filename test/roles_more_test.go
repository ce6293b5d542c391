//go:build linux

package test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gapless"
)

// secure speaks TLS, and HTTP/2 over it, by the package gapless.
func secure() int {
	cert, err := tls.X509KeyPair([]byte(os.Getenv("E2E_CERT")), []byte(os.Getenv("E2E_KEY")))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var handled atomic.Int64
	srv := &http.Server{
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			handled.Add(1)
			w.Header().Set("X-Gapless-Generation", strconv.Itoa(gapless.Generation()))
			if ms, err := strconv.Atoi(r.URL.Query().Get("ms")); err == nil {
				select {
				case <-time.After(time.Duration(ms) * time.Millisecond):
				case <-r.Context().Done():
				}
			}
			_, _ = io.Copy(w, r.Body)
		}),
	}
	if err := gapless.Serve(srv); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Printf("handled %d\n", handled.Load())
	return 0
}

// staysOpen keeps http.Server from closing a listener whose accept has failed.
type staysOpen struct{ net.Listener }

func (staysOpen) Close() error { return nil }

// shutsItsListener calls shutdown(2) on its socket when it is asked to, as some servers do when they stop, and goes on.
func shutsItsListener() int {
	l := inherited()
	mux := http.NewServeMux()
	mux.Handle("/", answer())
	mux.HandleFunc("/shut", func(w http.ResponseWriter, _ *http.Request) {
		rc, err := l.(*net.TCPListener).SyscallConn()
		if err == nil {
			err = rc.Control(func(fd uintptr) { err = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
		}
		fmt.Fprintln(w, err)
	})
	go func() {
		for {
			_ = http.Serve(staysOpen{l}, mux)
			pause(time.Millisecond)
		}
	}()
	wait(syscall.SIGTERM)
	return 0
}

// readyLater accepts at once, and says at /up when it can serve: half a second later. Whoever asks for something else
// before that is turned away.
func readyLater() int {
	var up atomic.Bool
	time.AfterFunc(500*time.Millisecond, func() { up.Store(true) })
	mux := http.NewServeMux()
	mux.HandleFunc("/up", func(w http.ResponseWriter, _ *http.Request) {
		if !up.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if !up.Load() {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		answer().ServeHTTP(w, r)
	})
	go func() { _ = http.Serve(inherited(), mux) }()
	wait(syscall.SIGTERM)
	pause(time.Second) // for what is in flight
	return 0
}
