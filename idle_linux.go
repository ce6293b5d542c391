package gapless

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gapless/internal/handoff"
)

// idleSet keeps the connections that have come from another process and on which nothing has come since. Most of ten
// thousand say nothing for minutes, and for all that time they need no net.Conn, no goroutine and no buffer: a
// descriptor in an epoll set tells when the first byte is there. Handing them on costs as little.
//
// Invariant: who takes a connection out of conns, under mu, owns it.
type idleSet struct {
	s *server

	mu     sync.Mutex
	ep     *os.File // nil while nothing has come
	rc     syscall.RawConn
	conns  map[int]idleConn
	queue  []idleAt // in the order in which they came, which is that of their ends; some are gone
	number uint64
	active int  // taken out by the loop and not yet the server's
	last   bool // nothing comes any more: the loop ends when conns is empty
}

type idleConn struct {
	h      *handoff.Conn
	number uint64 // descriptors are used again, numbers are not
}

type idleAt struct {
	fd     int
	number uint64
	end    time.Time
}

// keep takes h over, unless it cannot: then h is still the caller's.
func (i *idleSet) keep(h *handoff.Conn) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.last || i.ep == nil && !i.open() {
		return false
	}
	if i.control(unix.EPOLL_CTL_ADD, h.FD()) != nil {
		return false
	}
	i.number++
	i.conns[h.FD()] = idleConn{h, i.number}
	if d := i.s.idleTimeout(); d > 0 {
		if i.queue = append(i.queue, idleAt{h.FD(), i.number, time.Now().Add(d)}); len(i.queue) == 1 {
			_ = i.ep.SetReadDeadline(i.queue[0].end)
		}
	}
	return true
}

// open makes the epoll set and starts the loop that waits for it.
func (i *idleSet) open() bool {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return false
	}
	// The runtime polls only what does not block, which to this descriptor makes no difference.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return false
	}
	f := os.NewFile(uintptr(fd), "idle-connections")
	rc, err := f.SyscallConn()
	if err == nil {
		err = f.SetReadDeadline(time.Time{})
	}
	if err != nil {
		_ = f.Close()
		return false
	}
	i.ep, i.rc, i.conns = f, rc, make(map[int]idleConn)
	i.s.parks.Go(i.loop)
	return true
}

func (i *idleSet) control(op, fd int) (err error) {
	cerr := i.rc.Control(func(ep uintptr) {
		err = unix.EpollCtl(int(ep), op, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
	})
	return errors.Join(cerr, err)
}

// take takes the connection of that descriptor out, which must be there.
func (i *idleSet) take(fd int) idleConn {
	c := i.conns[fd]
	// Closing would not do it: the process that the connection comes from may have it open for another moment.
	_ = i.control(unix.EPOLL_CTL_DEL, fd)
	delete(i.conns, fd)
	return c
}

// end takes the connection of that descriptor out and closes it.
func (i *idleSet) end(fd int) { _ = i.take(fd).h.Close() }

// loop gives the server the connections that have become active, and closes those that were idle for too long.
func (i *idleSet) loop() {
	var events [128]unix.EpollEvent
	for {
		n := 0
		err := i.rc.Read(func(ep uintptr) bool {
			var err error
			for n, err = unix.EpollWait(int(ep), events[:], 0); errors.Is(err, unix.EINTR); {
				n, err = unix.EpollWait(int(ep), events[:], 0)
			}
			return n > 0 || err != nil
		})
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			n = 0
		}
		var active, back []idleConn
		i.mu.Lock()
		for _, e := range events[:max(n, 0)] {
			if _, ok := i.conns[int(e.Fd)]; ok {
				active = append(active, i.take(int(e.Fd)))
			}
		}
		i.active = len(active)
		i.expire()
		i.mu.Unlock()
		for _, c := range active {
			if !i.s.adopt(c.h) {
				back = append(back, c)
			}
		}
		i.mu.Lock()
		for _, c := range back {
			i.putBack(c)
		}
		i.active = 0
		end := i.last && len(i.conns) == 0
		i.mu.Unlock()
		if end {
			_ = i.ep.Close()
			return
		}
		if len(back) > 0 {
			pause(i.s.dead, shortPause)
		}
	}
}

// shortPause is how long the connections wait that have become active while there are no descriptors.
const shortPause = 20 * time.Millisecond

// putBack keeps a connection that the server cannot take at present. It is active still, so it is soon tried again.
func (i *idleSet) putBack(c idleConn) {
	if closed(i.s.dead) || i.control(unix.EPOLL_CTL_ADD, c.h.FD()) != nil {
		_ = c.h.Close()
		return
	}
	i.conns[c.h.FD()] = c
}

// expire closes what has been idle for too long, and has the loop woken when the next one will be.
func (i *idleSet) expire() {
	now := time.Now()
	var next time.Time
	for len(i.queue) > 0 {
		first := i.queue[0]
		if c, ok := i.conns[first.fd]; ok && c.number == first.number {
			if first.end.After(now) {
				next = first.end
				break
			}
			i.end(first.fd)
		}
		i.queue = i.queue[1:]
	}
	if i.last && len(i.conns) == 0 {
		return
	}
	_ = i.ep.SetReadDeadline(next)
}

// finish says that nothing comes any more.
func (i *idleSet) finish() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.last = true
	i.wake()
}

// wake ends the loop's wait.
func (i *idleSet) wake() {
	if i.ep != nil {
		_ = i.ep.SetReadDeadline(time.Unix(1, 0))
	}
}

// leave lets the connections go as the server's mode wants it, and says how many are left. Those on which something
// has come stay: the loop takes care of them.
func (i *idleSet) leave() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch i.s.mode.Load() {
	case modeHanding:
		for fd, c := range i.conns {
			ok := i.s.pass(c.h)
			if !ok && i.s.full.Swap(false) {
				_ = i.s.out.Load().WaitRoom(10 * time.Millisecond)
				ok = i.s.pass(c.h)
			}
			if !ok {
				break // the next look at all connections tries again
			}
			i.end(fd)
		}
	case modeEnding:
		for fd := range i.conns {
			var one [1]byte
			if _, _, err := unix.Recvfrom(fd, one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT); errors.Is(err, unix.EAGAIN) {
				i.end(fd)
			}
		}
	}
	if len(i.conns) == 0 && i.last {
		i.wake()
	}
	return len(i.conns) + i.active
}

// close ends all connections, active or not.
func (i *idleSet) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.last = true
	for fd := range i.conns {
		i.end(fd)
	}
	i.wake()
}

func (i *idleSet) len() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.conns) + i.active
}
