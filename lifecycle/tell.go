package lifecycle

import (
	"errors"
	"fmt"
	"os"

	"gapless/internal/notify"
)

// generationField is ours among sd_notify's variables (the X_ prefix is free for all): a master that starts says it
// first of all, so that the parent knows whom it may have to wait for, or to clean up after.
const generationField = "X_GAPLESS_GENERATION"

// tellParent sends lines of the sd_notify protocol to the parent. One that does not read holds nobody up for long.
func tellParent(state string) error {
	address := os.Getenv("NOTIFY_SOCKET")
	if address == "" {
		return errors.New("tell the parent: NOTIFY_SOCKET is not set")
	}
	if err := notify.Send(address, state); err != nil {
		return fmt.Errorf("tell the parent: %w", err)
	}
	return nil
}
