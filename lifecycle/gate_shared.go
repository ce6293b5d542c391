package lifecycle

import (
	"gapless/upgrade"
	"gapless/workerpool"
)

// renewShared has the workers to come share new lanes, and returns the ones that those so far share. Addresses without
// steering keep the one socket.
func (g *gate) renewShared() map[string]workerpool.Socket {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := make(map[string]workerpool.Socket)
	for _, name := range g.names {
		if s, ok := g.shared[name]; ok && g.inv.Mode(name) == upgrade.ModeShared {
			old[name] = s
			delete(g.shared, name)
		}
	}
	return old
}

// restoreShared undoes renewShared.
func (g *gate) restoreShared(old map[string]workerpool.Socket) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for name, s := range old {
		g.shared[name] = s
	}
}

// retire takes lanes out of the program all of whose workers are about to drain.
func (g *gate) retire(old map[string]workerpool.Socket) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []string
	for _, s := range old {
		delete(g.admitted, s.Lane)
		out = append(out, s.Lane)
	}
	return g.inv.Switch(nil, out)
}
