//go:build linux

package test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	ossignal "os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// roleVariable makes the test binary play a role instead of running tests.
const roleVariable = "E2E_ROLE"

// role returns a command whose workers play a role. env(1) becomes the program: they are the workers themselves.
func role(name string, env ...string) []string {
	return append(append([]string{"/usr/bin/env", roleVariable + "=" + name}, env...), built.self)
}

// roles are programs that a server manager meets, most of them bad ones.
var roles = map[string]func() int{
	"never-ready":         neverReady,
	"app-everywhere":      appEverywhere,
	"exits-at-once":       func() int { return 0 },
	"exits-3":             func() int { fmt.Println("first line"); fmt.Println("the database is missing"); return 3 },
	"ignores-term":        ignoresTerm,
	"forks-grandchild":    forksGrandchild,
	"crashes-after-ready": crashesAfterReady,
	"blocking":            blockingServer,
	"chatty":              chatty,
	"shutdown":            shutdownServer,
	"notifies":            notifies,
	"all-listeners":       allListeners,
	"environment":         environment,
	"secure":              secure,
	"shuts-its-listener":  shutsItsListener,
	"ready-later":         readyLater,
	"journal":             journal,
	"watchdog":            watchdogSender,
	"leaks":               leaks,
	"reopens":             reopens,
	"prints":              prints,
	"closes-idle":         closesIdle,
	"tableflip":           tableflipServer,
	"verification":        verification,
}

func play(name string) int {
	f, ok := roles[name]
	if !ok {
		fmt.Fprintln(os.Stderr, "no such role:", name)
		return 2
	}
	return f()
}

// inherited is the first socket.
func inherited() net.Listener {
	f := os.NewFile(3, "listener")
	l, err := net.FileListener(f)
	if err != nil {
		panic(err)
	}
	f.Close()
	return l
}

func wait(sigs ...os.Signal) {
	c := make(chan os.Signal, 1)
	ossignal.Notify(c, sigs...)
	<-c
}

// neverReady lives and does nothing, until it is killed.
func neverReady() int {
	wait(syscall.SIGTERM)
	return 0
}

// ignoresTerm serves, whatever it is asked.
func ignoresTerm() int {
	ossignal.Ignore(syscall.SIGTERM)
	return serveForever(inherited())
}

func serveForever(l net.Listener) int {
	fmt.Fprintln(os.Stderr, http.Serve(l, answer()))
	return 1
}

func answer() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Gapless-Generation", os.Getenv("GAPLESS_GENERATION"))
		w.Header().Set("X-Request-Id", r.Header.Get("X-Request-Id"))
		if ms, err := strconv.Atoi(r.URL.Query().Get("ms")); err == nil {
			select {
			case <-time.After(time.Duration(ms) * time.Millisecond):
			case <-r.Context().Done():
			}
		}
		body, _ := io.ReadAll(r.Body)
		if len(body) == 0 {
			wd, _ := os.Getwd()
			fmt.Fprintf(w, "generation %s worker %s pid %d dir %s release %s\n", os.Getenv("GAPLESS_GENERATION"),
				os.Getenv("GAPLESS_WORKER"), os.Getpid(), wd, os.Getenv("E2E_RELEASE"))
			return
		}
		_, _ = w.Write(body)
	})
}

// forksGrandchild serves and has a child that does not heed TERM, in its process group or in one of its own.
func forksGrandchild() int {
	child := exec.Command("/bin/sh", "-c", "trap '' TERM; sleep 600; true")
	child.SysProcAttr = &syscall.SysProcAttr{Setpgid: os.Getenv("E2E_OWN_GROUP") != ""}
	if err := child.Start(); err != nil {
		return 1
	}
	return shutdownServer()
}

// crashesAfterReady serves for a moment.
func crashesAfterReady() int {
	l := inherited()
	go serveForever(l)
	time.AfterFunc(150*time.Millisecond, func() { os.Exit(7) })
	select {}
}

// blockingServer takes one connection at a time, blocked in accept(2).
func blockingServer() int {
	if err := syscall.SetNonblock(3, false); err != nil {
		return 1
	}
	for {
		fd, _, err := syscall.Accept(3)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return 1
		}
		buf := make([]byte, 4096)
		if n, _ := syscall.Read(fd, buf); n > 0 {
			_, _ = syscall.Write(fd, []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"))
		}
		syscall.Close(fd)
	}
}

// chatty prints numbered lines on both streams, as many as E2E_LINES says, and then serves.
func chatty() int {
	n, _ := strconv.Atoi(os.Getenv("E2E_LINES"))
	for i := range n {
		fmt.Fprintf(os.Stdout, "out %s.%s %d %s\n", os.Getenv("GAPLESS_GENERATION"), os.Getenv("GAPLESS_WORKER"), i, strings.Repeat("x", 80))
		fmt.Fprintf(os.Stderr, "err %s.%s %d\n", os.Getenv("GAPLESS_GENERATION"), os.Getenv("GAPLESS_WORKER"), i)
	}
	fmt.Println("now serving")
	return shutdownServer()
}

// shutdownServer is what a careful Go program does without gapless: it stops by http.Server.Shutdown.
func shutdownServer() int { return shutdownOn(inherited()) }

func shutdownOn(l net.Listener) int {
	srv := &http.Server{Handler: answer()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		wait(syscall.SIGTERM)
		_ = srv.Shutdown(context.Background())
	}()
	if err := srv.Serve(l); err != http.ErrServerClosed {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	<-done
	return 0
}

// notifies says READY=1 only when the file that E2E_GATE names exists, though it serves before.
func notifies() int {
	gate := os.Getenv("E2E_GATE")
	go func() {
		became(time.Minute, func() bool { _, err := os.Stat(gate); return err == nil })
		c, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		defer c.Close()
		_, _ = c.Write([]byte("READY=1"))
	}()
	return shutdownServer()
}

// environment answers with what it was given: variables, descriptors, limits and socket options.
func environment() int {
	report := survey() // before anything is opened
	return serveAll(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, report) }))
}

// allListeners serves every socket that it was passed.
func allListeners() int { return serveAll(answer()) }

func serveAll(h http.Handler) int {
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	srv := &http.Server{Handler: h}
	var wg sync.WaitGroup
	for fd := 3; fd < 3+n; fd++ {
		l, err := net.FileListener(os.NewFile(uintptr(fd), "listener"))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		wg.Go(func() { _ = srv.Serve(l) })
	}
	wait(syscall.SIGTERM)
	_ = srv.Shutdown(context.Background())
	wg.Wait()
	return 0
}
