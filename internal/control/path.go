package control

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

const (
	// maxSocketPath is the room that sockaddr_un has on every system for a path with its final NUL.
	maxSocketPath = 103
	// maxSocketName keeps the names of the sockets readable in a listing.
	maxSocketName = 48
)

// SocketSuffix ends the name of each control socket that DefaultPath makes.
const SocketSuffix = ".sock"

// Folders returns the folders in which the control sockets of the user uid lie: the first is where a new one goes, and
// a client looks in all of them, because a login shell, a cron job and a service of one user differ in their environment.
// getenv is os.Getenv. GAPLESS_RUNTIME_DIR, if it is set to an absolute path, is the only one.
func Folders(uid int, getenv func(string) string) []string {
	if dir := getenv("GAPLESS_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return []string{dir}
	}
	temp := getenv("TMPDIR")
	if !filepath.IsAbs(temp) {
		temp = "/tmp"
	}
	var folders []string
	if dir := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		folders = append(folders, filepath.Join(dir, "gapless"))
	}
	perUser := filepath.Join(temp, fmt.Sprintf("gapless-%d", uid))
	if uid == 0 {
		perUser = "/run/gapless"
	}
	folders = append(folders, perUser)
	if session := fmt.Sprintf("/run/user/%d/gapless", uid); !slices.Contains(folders, session) {
		folders = append(folders, session)
	}
	return folders
}

// DefaultPath returns the path of the control socket in folder for the gapless whose first listener is listener, in the
// form that upgrade.Address.String has: 127.0.0.1:8000, [::]:443, unix:/run/app.sock, unix:@app or fd:NAME. Where the
// kernel chooses the port, pid (the parent's) keeps the names apart.
func DefaultPath(folder, listener string, pid int) string {
	name := socketName(listener)
	if strings.HasSuffix(listener, ":0") && !strings.HasPrefix(listener, "unix:") {
		name = fmt.Sprintf("%s-%d", name, pid)
	}
	return filepath.Join(folder, name+SocketSuffix)
}

// socketName makes a file name of a listener. What is no plain HOST:PORT, or too long, is told apart by a short hash.
func socketName(listener string) string {
	plain := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '-':
			return r
		case r == '[' || r == ']':
			return -1
		}
		return '_'
	}, listener)
	if !strings.HasPrefix(listener, "unix:") && !strings.HasPrefix(listener, "fd:") && !strings.Contains(listener, "%") &&
		len(plain) <= maxSocketName && plain != "" && plain[0] != '.' {
		return plain
	}
	sum := sha256.Sum256([]byte(listener))
	kind, _, _ := strings.Cut(plain, "_")
	if len(kind) > 8 || kind == "" || kind[0] == '.' {
		kind = "at"
	}
	return kind + "-" + hex.EncodeToString(sum[:4])
}
