//go:build !linux

package upgrade

import "os"

// Accept fails with ErrNotSupported.
func (l *Lane) Accept() (*os.File, error) { return nil, ErrNotSupported }

// Shutdown fails with ErrNotSupported.
func (inv *Inventory) Shutdown() error { return ErrNotSupported }
