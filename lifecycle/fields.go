package lifecycle

import "go.uber.org/zap"

// The keys of log fields are an interface: whoever reads the JSON relies on them. They are declared here, and used
// likewise in workerpool and upgrade.

func fGeneration(n int) zap.Field { return zap.Int("generation", n) }
func fPID(pid int) zap.Field      { return zap.Int("pid", pid) }
