package lifecycle

import (
	"os"

	"github.com/coreos/go-systemd/v22/activation"
)

const (
	// activatedVariable tells the first master where the manifest of the sockets is that came from the service manager.
	activatedVariable = "GAPLESS_ACTIVATED_FD"
	// keptVariable tells the masters that the service manager keeps the lanes if all of gapless is killed.
	keptVariable = "GAPLESS_KEPT"
)

// takeActivated returns what the service manager passed to the parent by LISTEN_FDS, by name: the sockets of socket units, of
// which several may have one name, and what an earlier parent had it keep. It is called once; afterwards nobody below this
// process finds the variables, which are none of theirs.
func takeActivated() []*os.File { return activation.Files(true) }
