//go:build !linux

package lifecycle

func openEstate(string) (estate, error) { return nil, errLinux }
