package verify

import (
	"runtime"
	"syscall"
)

// own starts the parent and waits for it. When this process is killed the parent is asked to end as well: the kernel
// sends that signal when the thread that started it ends, so the thread is kept for it.
func (s *Server) own(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	err := s.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	s.status = s.cmd.Wait()
	close(s.ended)
}
