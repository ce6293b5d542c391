//go:build linux

package test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// view is what a worker has been given, as it sees it.
type view struct {
	Environ     []string
	Descriptors map[int]string // from 3 on
	Names       string         // LISTEN_FDNAMES
	ListenPID   bool           // LISTEN_PID is the worker itself
	NoDelay     map[int]int    // TCP_NODELAY, by socket
	NonBlock    map[int]bool
	Protocol    map[int]int // SO_PROTOCOL: IPPROTO_TCP, not MPTCP
	NofileSoft  uint64
	NofileHard  uint64
	Group       bool // leads a process group of its own
	UID         int
	Args        []string
}

// survey looks around before anything is opened.
func survey() string {
	v := view{Environ: os.Environ(), Descriptors: map[int]string{}, NoDelay: map[int]int{}, NonBlock: map[int]bool{}, Protocol: map[int]int{},
		Names: os.Getenv("LISTEN_FDNAMES"), ListenPID: os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()),
		Group: unix.Getpgrp() == os.Getpid(), UID: os.Getuid(), Args: os.Args[1:]}
	slices.Sort(v.Environ)
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err.Error()
	}
	for _, e := range entries {
		fd, _ := strconv.Atoi(e.Name())
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		// What the runtime of Go has opened for itself is no gift.
		if fd < 3 || err != nil || strings.Contains(target, "eventpoll") || strings.Contains(target, "eventfd") || strings.Contains(target, "/proc/") {
			continue
		}
		if strings.Contains(target, "pidfd") || strings.HasPrefix(target, "/sys/fs/cgroup") {
			continue
		}
		v.Descriptors[fd] = target
	}
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	for fd := 3; fd < 3+n; fd++ {
		v.NoDelay[fd], _ = unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY)
		v.Protocol[fd], _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
		flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		v.NonBlock[fd] = flags&unix.O_NONBLOCK != 0
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil {
		v.NofileSoft, v.NofileHard = limit.Cur, limit.Max
	}
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(err)
	}
	return string(text)
}
