package control

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

// SocketsOf returns the paths at which the process pid listens, as far as this user may know them.
func SocketsOf(pid int) []string {
	folder := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil
	}
	mine := make(map[string]bool)
	for _, e := range entries {
		link, err := os.Readlink(folder + "/" + e.Name())
		if inode, ok := strings.CutPrefix(link, "socket:["); ok && err == nil {
			mine[strings.TrimSuffix(inode, "]")] = true
		}
	}
	table, err := os.Open(fmt.Sprintf("/proc/%d/net/unix", pid))
	if err != nil {
		return nil
	}
	defer table.Close() //nolint:errcheck // only read
	var paths []string
	for lines := bufio.NewScanner(table); lines.Scan(); {
		// Num RefCount Protocol Flags Type St Inode Path
		fields := strings.Fields(lines.Text())
		const acceptsConnections, stream = "00010000", "0001"
		if len(fields) < 8 || fields[3] != acceptsConnections || fields[4] != stream || !mine[fields[6]] {
			continue
		}
		_, path, _ := strings.Cut(lines.Text(), fields[6]+" ")
		if strings.HasPrefix(path, "/") {
			paths = append(paths, path)
		}
	}
	return paths
}
