package lifecycle

import (
	"os"

	"golang.org/x/sys/unix"
)

// anonymousFile returns memory that has a descriptor and no name.
func anonymousFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
