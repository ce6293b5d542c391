//go:build unix

package channel

import (
	"os"
	"syscall"
)

// inodeOf returns a file's inode; 0 if there is no file.
func inodeOf(f *os.File) uint64 {
	if f == nil {
		return 0
	}
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}
