package upgrade

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// arrivals tells when something has come to one of the lanes, once for each call of await: a process that were told of
// each connection would pay 12 µs of CPU for it. That is also why it is not the runtime's own poller.
type arrivals struct {
	c chan struct{} // receives when something has come

	ep   *os.File // of epoll; nil where there is none, and nothing is awaited
	rc   syscall.RawConn
	runs bool // its goroutine, from the first await
	loop sync.WaitGroup
}

// newArrivals makes the epoll set now, not when it is first needed: who counts a master's descriptors, to see whether one
// is lost, should find the same number at any time.
func newArrivals() *arrivals {
	a := &arrivals{c: make(chan struct{}, 1)}
	_ = a.open() // without it the watcher looks itself, as often as it does where connections come
	return a
}

// await has c told of what the lookouts are for, at once if it is so already. It returns false where that is not possible.
func (a *arrivals) await(places []lookout) bool {
	if len(places) == 0 {
		return true
	}
	if a.ep == nil {
		return false
	}
	if !a.runs {
		a.runs = true
		a.loop.Go(a.run)
	}
	for _, p := range places {
		events := uint32(unix.EPOLLONESHOT) // the end of listening is always told
		if p.arrivals {
			events |= unix.EPOLLIN
		}
		if withFd(p.lane.file, func(fd int) error { return a.arm(fd, events) }) != nil {
			return false
		}
	}
	return true
}

func (a *arrivals) arm(fd int, events uint32) (err error) {
	event := unix.EpollEvent{Events: events, Fd: int32(fd)}
	cerr := a.rc.Control(func(ep uintptr) {
		// It is there already but for the first time, and after somebody has stopped this process's polling.
		if err = unix.EpollCtl(int(ep), unix.EPOLL_CTL_MOD, fd, &event); errors.Is(err, unix.ENOENT) {
			err = unix.EpollCtl(int(ep), unix.EPOLL_CTL_ADD, fd, &event)
		}
	})
	return errors.Join(cerr, err)
}

func (a *arrivals) open() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	// The runtime polls only what does not block, which to this descriptor makes no difference.
	if err := unix.SetNonblock(fd, true); err != nil {
		return errors.Join(os.NewSyscallError("fcntl", err), unix.Close(fd))
	}
	f := os.NewFile(uintptr(fd), "arrivals")
	rc, err := f.SyscallConn()
	if err == nil {
		err = f.SetReadDeadline(time.Time{}) // an error says that the runtime does not poll it
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	a.ep, a.rc = f, rc
	return nil
}

// run tells c until the epoll set is closed.
func (a *arrivals) run() {
	for {
		err := a.rc.Read(func(ep uintptr) bool {
			var events [16]unix.EpollEvent
			n, err := unix.EpollWait(int(ep), events[:], 0)
			return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
		})
		if err != nil {
			return
		}
		select {
		case a.c <- struct{}{}:
		default:
		}
	}
}

// close ends it. Nothing is told any more.
func (a *arrivals) close() {
	if a.ep != nil {
		_ = a.ep.Close()
		a.loop.Wait()
	}
}
