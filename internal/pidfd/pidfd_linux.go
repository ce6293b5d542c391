package pidfd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"gapless/internal/packet"

	"golang.org/x/sys/unix"
)

// reapGrace bounds how long the status of a process that is not our child is waited for after its death. A reaper that
// listens for SIGCHLD takes milliseconds; a PID 1 that never reaps must not hold up a drain.
const reapGrace = 250 * time.Millisecond

// Process is one process behind a pidfd. Its methods may be called from any goroutine.
type Process struct {
	pid  int
	file *os.File // non-blocking and in the runtime's poller; owned
	conn syscall.RawConn

	done    chan struct{} // closed by watch when the process is dead
	settled chan struct{} // closed by watch when status will not change any more; always after done
	status  Status        // written by watch before it closes settled
	stopped chan struct{} // closed by watch when it returns
	once    sync.Once     // Close

	mu     sync.RWMutex // held for reading while a signal is sent by number, for writing while the child is reaped
	reaped bool         // guarded by mu: the number may belong to somebody else from now on
}

// Start forks and executes path with a pidfd that belongs to the child from its first moment on. attr is as for
// syscall.ForkExec: attr.Files are plain descriptors and keep their flags, unlike the ExtraFiles of os/exec.
// The caller must not wait for the child by other means.
func Start(path string, argv []string, attr *syscall.ProcAttr) (*Process, error) {
	a := syscall.ProcAttr{}
	if attr != nil {
		a = *attr
	}
	sys := syscall.SysProcAttr{}
	if a.Sys != nil {
		sys = *a.Sys
	}
	fd := -1
	sys.PidFD, a.Sys = &fd, &sys
	pid, err := syscall.ForkExec(path, argv, &a)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	if fd < 0 { // a kernel that does not give one with clone; the PID is ours as long as nobody reaps it
		if fd, err = unix.PidfdOpen(pid, 0); err != nil {
			return nil, fmt.Errorf("open a pidfd for %s (pid %d): %w", path, pid, mend(err))
		}
	}
	return newProcess(fd, pid)
}

// Open opens the process that has this PID now: an own child that nobody has reaped yet, or any other. A process that is
// gone is os.ErrProcessDone. Whoever needs to be sure which process this is compares its start time afterwards.
func Open(pid int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open a pidfd for pid %d: %w", pid, mend(err))
	}
	return newProcess(fd, pid)
}

// Adopt takes over a pidfd that another process has passed on, and checks that it belongs to pid (the PID is gone from
// the descriptor once the process is reaped; then the caller's word is taken). f stays the caller's and may be closed.
func Adopt(f *os.File, pid int) (*Process, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("adopt pid %d: %w", pid, err)
	}
	own := -1
	if ctlErr := raw.Control(func(fd uintptr) { own, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3) }); ctlErr != nil {
		err = ctlErr
	}
	if err != nil {
		return nil, fmt.Errorf("adopt pid %d from %s: %w", pid, f.Name(), err)
	}
	have, err := pidOf(own)
	if err == nil && have > 0 && have != pid {
		err = fmt.Errorf("the descriptor is that of pid %d", have)
	}
	if err != nil {
		unix.Close(own)
		return nil, fmt.Errorf("adopt pid %d from %s: %w", pid, f.Name(), err)
	}
	return newProcess(own, pid)
}

// newProcess takes ownership of fd.
func newProcess(fd, pid int) (*Process, error) {
	// The flag is set before os.NewFile looks at it: only then does the file join the poller.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch pid %d: %w", pid, err)
	}
	p := &Process{
		pid:     pid,
		file:    os.NewFile(uintptr(fd), "pidfd:"+strconv.Itoa(pid)),
		done:    make(chan struct{}),
		settled: make(chan struct{}),
		stopped: make(chan struct{}),
	}
	var err error
	if p.conn, err = p.file.SyscallConn(); err == nil {
		err = p.file.SetReadDeadline(time.Time{}) // fails unless the poller has taken the file
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch pid %d: %w", pid, err), p.file.Close())
	}
	go p.watch()
	return p, nil
}

// PID is the process ID, for logs and /proc; signals go through the descriptor.
func (p *Process) PID() int { return p.pid }

// Done is closed when the process is dead (perhaps not yet reaped). It stays open if Close comes first.
func (p *Process) Done() <-chan struct{} { return p.done }

// File returns a duplicate of the pidfd, to pass on. The caller closes it.
func (p *Process) File() (*os.File, error) { return packet.Dup(p.file, p.file.Name()) }

// Signal sends sig to the process. A process that is dead is os.ErrProcessDone.
func (p *Process) Signal(sig syscall.Signal) error {
	return p.send(sig, 0)
}

// SignalGroup sends sig to the process group that this process leads, also when the leader itself is dead but others
// are left in the group. On kernels before 6.9 it works only until the leader is dead, and is os.ErrProcessDone from
// then on, for its PID could be somebody else's group by then.
func (p *Process) SignalGroup(sig syscall.Signal) error {
	err := p.send(sig, unix.PIDFD_SIGNAL_PROCESS_GROUP)
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.reaped {
		return fmt.Errorf("signal the group of pid %d: %w", p.pid, os.ErrProcessDone)
	}
	if err := unix.Kill(-p.pid, sig); err != nil {
		return fmt.Errorf("send %s to the group of pid %d: %w", sig, p.pid, mend(err))
	}
	return nil
}

func (p *Process) send(sig syscall.Signal, flags int) error {
	var sendErr error
	err := p.conn.Control(func(fd uintptr) { sendErr = unix.PidfdSendSignal(int(fd), sig, nil, flags) })
	if err == nil {
		err = mend(sendErr)
	}
	if err != nil {
		return fmt.Errorf("send %s to pid %d: %w", sig, p.pid, err)
	}
	return nil
}

// Status waits until the process is dead and says how it ended. For a process that is not our child it waits up to a
// quarter of a second more for its parent to reap it. After Close it returns what is known, at once.
func (p *Process) Status() Status {
	select {
	case <-p.settled:
	case <-p.stopped:
	}
	return p.status
}

// Wait is Status with a way out: it returns ctx's cause when ctx ends first, and os.ErrClosed after Close.
func (p *Process) Wait(ctx context.Context) (Status, error) {
	select {
	case <-p.settled:
		return p.status, nil
	default:
	}
	select {
	case <-p.settled:
		return p.status, nil
	case <-p.stopped:
		select {
		case <-p.settled:
			return p.status, nil
		default:
			return Status{}, fmt.Errorf("wait for pid %d: %w", p.pid, os.ErrClosed)
		}
	case <-ctx.Done():
		return Status{}, fmt.Errorf("wait for pid %d: %w", p.pid, context.Cause(ctx))
	}
}

// Close stops watching and releases the descriptor. The process itself is left alone; a child that dies later stays
// a zombie until this process ends or reaps it.
func (p *Process) Close() error {
	var err error
	p.once.Do(func() { err = p.file.Close() })
	<-p.stopped
	return err
}

// watch is the one goroutine of p: death, then status.
func (p *Process) watch() {
	defer close(p.stopped)
	if err := p.await(unix.POLLIN); err != nil {
		return
	}
	reaped, status, err := p.reap()
	close(p.done)
	if err != nil {
		close(p.settled)
		return
	}
	if !reaped {
		status = p.told()
	}
	p.status = status
	close(p.settled)
}

// await parks in the runtime's poller until one of the events is there, the read deadline is over or the file is closed.
func (p *Process) await(events int16) error {
	var pollErr error
	err := p.conn.Read(func(fd uintptr) bool {
		for {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			_, pollErr = unix.Poll(fds, 0)
			if errors.Is(pollErr, unix.EINTR) {
				continue
			}
			return pollErr != nil || fds[0].Revents&events != 0
		}
	})
	return errors.Join(err, pollErr)
}

// reap collects the status if the process is our child.
func (p *Process) reap() (bool, Status, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reaped = true
	var info unix.Siginfo
	var waitErr error
	err := p.conn.Control(func(fd uintptr) {
		for {
			waitErr = unix.Waitid(unix.P_PIDFD, int(fd), &info, unix.WEXITED|unix.WNOHANG, nil)
			if !errors.Is(waitErr, unix.EINTR) {
				return
			}
		}
	})
	if err != nil {
		return false, Status{}, err
	}
	if waitErr != nil || info.Signo == 0 { // ECHILD: not ours, or reaped by somebody else in this process
		return false, Status{}, nil
	}
	return true, statusOf(&info), nil
}

// told asks the kernel for the status of a process that somebody else reaps.
func (p *Process) told() Status {
	if s, err := p.exitInfo(); err != nil || s.Known {
		return s // known already, or a kernel that cannot tell
	}
	// A zombie. The descriptor hangs up when it is reaped; a deadline that passes first leaves the status unknown.
	if p.file.SetReadDeadline(time.Now().Add(reapGrace)) != nil || p.await(unix.POLLHUP) != nil {
		return Status{}
	}
	s, _ := p.exitInfo() // an error is "unknown", which the zero Status says
	return s
}

func (p *Process) exitInfo() (Status, error) {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	var infoErr error
	if err := p.conn.Control(func(fd uintptr) { infoErr = unix.IoctlPidfdInfo(int(fd), &info) }); err != nil {
		return Status{}, err
	}
	if infoErr != nil && !errors.Is(infoErr, unix.ESRCH) {
		return Status{}, infoErr
	}
	if errors.Is(infoErr, unix.ESRCH) || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return Status{}, nil
	}
	return FromWaitStatus(syscall.WaitStatus(info.Exit_code)), nil
}

// statusOf reads the fields that x/sys leaves unnamed: after signo, errno and code (padded to the size of a pointer)
// come pid, uid and status, 4 bytes each.
func statusOf(info *unix.Siginfo) Status {
	const cldExited, cldKilled, cldDumped = 1, 2, 3
	const status = (12+unsafe.Sizeof(uintptr(0))-1)/unsafe.Sizeof(uintptr(0))*unsafe.Sizeof(uintptr(0))/4 + 2
	value := (*[unsafe.Sizeof(*info) / 4]int32)(unsafe.Pointer(info))[status]
	switch info.Code {
	case cldExited:
		return Status{Known: true, Code: int(value)}
	case cldKilled, cldDumped:
		return Status{Known: true, Signal: syscall.Signal(value), CoreDumped: info.Code == cldDumped}
	}
	return Status{}
}

// pidOf reads which process a pidfd belongs to: -1 once it is reaped.
func pidOf(fd int) (int, error) {
	text, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "Pid:"); ok {
			return strconv.Atoi(strings.TrimSpace(v))
		}
	}
	return 0, errors.New("the descriptor is not a pidfd")
}

// mend translates what the kernel says into what callers match.
func mend(err error) error {
	switch {
	case errors.Is(err, unix.ESRCH):
		return os.ErrProcessDone
	case errors.Is(err, unix.ENOSYS):
		return ErrNotSupported
	}
	return err
}
