//go:build !linux

package lifecycle

import (
	"errors"
	"os"
)

var errLinux = errors.New("gapless run needs Linux: masters and workers are watched through pidfds")

func becomeSubreaper() error { return errLinux }

func (p *parent) tellSelf(string) error { return errLinux }

func dupBeyond(*os.File, int) (int, error) { return -1, errLinux }
