package lifecycle

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/joho/godotenv"
)

// readEnvFiles returns environ with the variables of the files added; a later file beats an earlier one, and all of them
// what gapless was started with.
func readEnvFiles(environ, files []string) ([]string, error) {
	for _, file := range files {
		vars, err := godotenv.Read(file)
		if err != nil {
			return nil, fmt.Errorf("--env-file %s: %w; mend it, or leave it out", file, reason(err))
		}
		for _, name := range slices.Sorted(maps.Keys(vars)) {
			environ = slices.DeleteFunc(slices.Clone(environ), func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
			environ = append(environ, name+"="+vars[name])
		}
	}
	return environ, nil
}
