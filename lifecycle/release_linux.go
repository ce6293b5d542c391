package lifecycle

import (
	"os"

	"golang.org/x/sys/unix"
)

// openPinned holds a file without the right to read it, which an executable need not give.
func openPinned(path string) (*os.File, error) {
	return os.OpenFile(path, unix.O_PATH|unix.O_CLOEXEC, 0)
}

func idOf(st *unix.Stat_t) fileID { return fileID{st.Dev, st.Ino, st.Mtim} }
