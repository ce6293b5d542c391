//go:build !linux

package lifecycle

const storeVariable = "GAPLESS_STORE_FD"

func openEstate() (estate, error) { return nil, errLinux }
