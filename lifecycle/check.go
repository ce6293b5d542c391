package lifecycle

import (
	"fmt"
	"os"
	"path/filepath"
)

// Plan is what workers would be if they were started now.
type Plan struct {
	Path     string   // the executable, with symbolic links resolved; "": the built-in app
	Args     []string // with its placeholders
	Dir      string   // where they would run, resolved
	UID, GID *int     // nil: gapless's own
}

// Check finds on this machine what the configuration names, as a start would, and starts nothing.
func Check(cfg Config) (Plan, error) {
	rel, err := resolveRelease(cfg.Chdir, cfg.Command)
	if err != nil {
		return Plan{}, err
	}
	defer rel.close()
	ids, err := resolveCredentials(cfg.User, cfg.Group)
	if err != nil {
		return Plan{}, err
	}
	if _, err := readEnvFiles(os.Environ(), cfg.EnvFiles); err != nil {
		return Plan{}, err
	}
	if cfg.PIDFile != "" {
		dir := filepath.Dir(cfg.PIDFile)
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			return Plan{}, fmt.Errorf("--pid-file %s: there is no directory %s; create it, or name a file elsewhere", cfg.PIDFile, dir)
		}
	}
	plan := Plan{Path: rel.path, Args: rel.argv, Dir: rel.dirName, UID: ids.uid, GID: ids.gid}
	if len(cfg.Command) == 0 {
		plan.Path, plan.Args = "", nil
	}
	return plan, nil
}
