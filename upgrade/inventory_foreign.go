//go:build unix

package upgrade

import (
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
)

// Activated returns the sockets that were passed to this process by LISTEN_FDS, by their names in LISTEN_FDNAMES, for
// InventoryOptions. Unnamed ones are "LISTEN_FD_3" and so on. It leaves the environment as it is and must be called at
// most once, as each call makes new owners of the same descriptors.
func Activated() map[string][]*os.File {
	sockets := make(map[string][]*os.File)
	for _, f := range activation.Files(false) {
		sockets[f.Name()] = append(sockets[f.Name()], f)
	}
	return sockets
}

// foreign takes the first unclaimed socket of that name out of the activated ones, nil when there is none.
func (inv *Inventory) foreign(name string) *os.File {
	files := inv.activated[name]
	if len(files) == 0 {
		return nil
	}
	inv.activated[name] = files[1:]
	return files[0]
}

// foreignNames lists what could have been meant.
func (inv *Inventory) foreignNames() string {
	var names []string
	for name, files := range inv.activated {
		if len(files) > 0 {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "none was passed (is LISTEN_FDS set, and LISTEN_PID this process?)"
	}
	return "there is " + strings.Join(names, ", ")
}
