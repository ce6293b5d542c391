package lifecycle

import (
	"strings"

	"gapless/internal/procfs"
)

// leftovers returns the workers that listen at an address and whose gapless was killed as a whole, parent and master: a
// command that does not know the channel serves on then, and nobody will ever end it.
func leftovers(network, addr string) []int {
	var pids []int
	for _, s := range procfs.PortHolders(network, addr) {
		env, err := procfs.Environ(s.PID)
		if err != nil || !hasVariable(env, "GAPLESS_WORKER") {
			continue
		}
		if !managed(s) {
			pids = append(pids, s.PID)
		}
	}
	return pids
}

// managed tells whether a worker has a master, or at least a parent that will start one: both are among its ancestors,
// and run `gapless run`. What a worker has started has the worker itself above it, which is no manager.
func managed(s procfs.Stat) bool {
	for range 64 {
		if s.Parent <= 1 {
			return false
		}
		above, err := procfs.ReadStat(s.Parent)
		if err != nil {
			return false
		}
		args, err := procfs.Cmdline(above.PID)
		env, envErr := procfs.Environ(above.PID)
		if err != nil || envErr != nil {
			return true // who may not be looked into is not accused
		}
		if len(args) > 1 && args[1] == "run" && !hasVariable(env, "GAPLESS_WORKER") {
			return true
		}
		s = above
	}
	return true
}

func hasVariable(env []string, name string) bool {
	for _, kv := range env {
		if strings.HasPrefix(kv, name+"=") {
			return true
		}
	}
	return false
}
