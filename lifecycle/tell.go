package lifecycle

import (
	"fmt"

	"github.com/coreos/go-systemd/v22/daemon"
)

// generationField is ours among sd_notify's variables (the X_ prefix is free for all): a master that starts says it
// first of all, so that the parent knows whom it may have to wait for, or to clean up after.
const generationField = "X_GAPLESS_GENERATION"

// tellParent sends lines of the sd_notify protocol to the parent.
func tellParent(state string) error {
	ok, err := daemon.SdNotify(false, state)
	if err != nil {
		return fmt.Errorf("tell the parent: %w", err)
	}
	if !ok {
		return fmt.Errorf("tell the parent: NOTIFY_SOCKET is not set")
	}
	return nil
}
