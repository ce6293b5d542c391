package lifecycle

import (
	"gapless/upgrade"

	"go.uber.org/zap"
)

// steerPreview follows each change of what is staged: staged holds the lanes of the generation beside this one, and whether
// a worker is ready there; it is nil where none is staged. The lock is held.
func (g *gate) steerPreview(staged map[string]bool) {
	if g.inv == nil {
		return
	}
	for _, a := range g.inv.Addresses() {
		if g.inv.Mode(a.Name) == upgrade.ModePlain {
			continue
		}
		var lanes []string
		for _, l := range g.inv.Lanes(a.Name) {
			if staged[l.Name()] {
				lanes = append(lanes, l.Name())
			}
		}
		if err := g.inv.SetPreview(a.Name, lanes...); err != nil {
			g.log.Error("Preview connections do not reach the staged generation", zap.String("listener", a.Name), zap.Error(err))
		}
	}
}
