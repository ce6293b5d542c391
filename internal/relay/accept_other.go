//go:build !linux

package relay

import (
	"errors"
	"os"
)

func waiting(*os.File) int { return 1 }

func accept(*os.File) (*os.File, error) {
	return nil, errors.New("relaying is not supported on this operating system")
}
