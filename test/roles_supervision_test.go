//go:build linux

package test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	ossignal "os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gapless"

	"golang.org/x/sys/unix"
)

// journal is a server of the Go package that notes, in a file of its own under E2E_JOURNAL, each request that it begins
// and ends to answer. What it notes outlives its own KILL.
func journal() int {
	f, err := os.OpenFile(filepath.Join(os.Getenv("E2E_JOURNAL"), strconv.Itoa(os.Getpid())), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	answer := answer()
	err = gapless.Serve(&http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("X-Request-Id")
		fmt.Fprintf(f, "begin %s\n", id)
		answer.ServeHTTP(w, r)
		fmt.Fprintf(f, "end %s\n", id)
	})})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// watchdogSender says READY=1 and then WATCHDOG=1 as often as the contract wants, until the file that E2E_GATE names
// exists in its generation's name; it serves all the time.
func watchdogSender() int {
	usec, err := strconv.Atoi(os.Getenv("WATCHDOG_USEC"))
	if err != nil || os.Getenv("WATCHDOG_PID") != strconv.Itoa(os.Getpid()) {
		fmt.Fprintf(os.Stderr, "WATCHDOG_USEC=%q, WATCHDOG_PID=%q\n", os.Getenv("WATCHDOG_USEC"), os.Getenv("WATCHDOG_PID"))
		return 1
	}
	c, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer c.Close()
	_, _ = c.Write([]byte("READY=1"))
	go func() {
		tick := time.NewTicker(time.Duration(usec) * time.Microsecond / 4)
		defer tick.Stop()
		for range tick.C {
			if _, err := os.Stat(os.Getenv("E2E_GATE") + "." + strconv.Itoa(os.Getpid())); err != nil {
				_, _ = c.Write([]byte("WATCHDOG=1"))
			}
		}
	}()
	return shutdownServer()
}

// leaks grows by E2E_LEAK bytes a second, from E2E_LEAK_FIRST on, in small steps. The kernel fills the memory, because
// what the race detector notes of every access would be a multiple of it.
func leaks() int {
	first, _ := strconv.Atoi(os.Getenv("E2E_LEAK_FIRST"))
	rate, _ := strconv.Atoi(os.Getenv("E2E_LEAK"))
	grow := func(n int) {
		if _, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_POPULATE); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	grow(first)
	go func() {
		const steps = 20
		tick := time.NewTicker(time.Second / steps)
		defer tick.Stop()
		for range tick.C {
			grow(rate / steps)
		}
	}()
	return shutdownServer()
}

// reopens tells when it got USR1, and serves.
func reopens() int {
	c := make(chan os.Signal, 10)
	ossignal.Notify(c, syscall.SIGUSR1)
	go func() {
		for range c {
			fmt.Printf("reopened by %d\n", os.Getpid())
		}
	}()
	return shutdownServer()
}

// prints writes a numbered line every few milliseconds for as long as it lives, and the last when it ends.
func prints() int {
	who := os.Getenv("GAPLESS_GENERATION") + "." + os.Getenv("GAPLESS_WORKER")
	pad := strings.Repeat("x", 60)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-stop:
				fmt.Printf("line %s %d last\n", who, i)
				return
			case <-tick.C:
				fmt.Printf("line %s %d %s\n", who, i, pad)
			}
		}
	}()
	status := shutdownServer()
	close(stop)
	<-done
	return status
}
