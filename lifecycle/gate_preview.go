package lifecycle

// steerPreview follows each change of what is staged: staged holds the lanes of the generation beside this one, and whether
// a worker is ready there; it is nil where none is staged. The lock is held.
func (g *gate) steerPreview(map[string]bool) {}
