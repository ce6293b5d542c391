//go:build !linux

package upgrade

// Count fails with ErrNotSupported.
func (inv *Inventory) Count(string, []int) (map[int]int, error) { return nil, ErrNotSupported }
