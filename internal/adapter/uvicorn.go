package adapter

import (
	"embed"
	"path"
)

//go:embed python/*.py
var pythonFiles embed.FS

// uvicornKit loads its hook as Python's sitecustomize, which any Python but one with -I, -E or -S imports at its start. The
// hook chains to the sitecustomize that it hides.
func uvicornKit() kit {
	return kit{files: read(pythonFiles, "python"), environ: func(env []string, dir string) []string {
		return withList(env, "PYTHONPATH", ":", dir, true)
	}}
}

// read returns the files of a folder that the binary holds, by their names.
func read(fs embed.FS, folder string) map[string][]byte {
	files := make(map[string][]byte)
	entries, _ := fs.ReadDir(folder) // what was embedded is there
	for _, e := range entries {
		files[e.Name()], _ = fs.ReadFile(path.Join(folder, e.Name()))
	}
	return files
}
