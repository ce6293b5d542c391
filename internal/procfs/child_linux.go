package procfs

import (
	"os"
	"syscall"
)

// SignalChild sends sig to a direct child of this process, and to nobody else who may have the PID by now.
func SignalChild(pid int, sig syscall.Signal) error {
	s, err := ReadStat(pid)
	if err != nil {
		return err
	}
	if s.Dead() || s.Parent != os.Getpid() {
		return os.ErrProcessDone
	}
	_, err = signalOne(s, sig, func(now Stat) bool { return now.Parent == os.Getpid() })
	return err
}
