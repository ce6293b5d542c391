//go:build !linux

package upgrade

// Refuse fails with ErrNotSupported.
func (inv *Inventory) Refuse() error { return ErrNotSupported }
