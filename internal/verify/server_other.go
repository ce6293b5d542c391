//go:build !linux

package verify

import "syscall"

// own starts the parent and waits for it.
func (s *Server) own(started chan<- error) {
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err := s.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	s.status = s.cmd.Wait()
	close(s.ended)
}
