//go:build !linux

package verify

func killProcess(int) error { return ErrNotSupported }

func (s *Server) kill(int) (Outcome, error) { return Outcome{}, ErrNotSupported }
