package known

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// ErrNoApp is what the errors match that say why a file or a name is not short for a server's command.
var ErrNoApp = errors.New("no application found")

// maxSource bounds how much of a program is read to find its application, in bytes.
const maxSource = 1 << 20

// expand replaces what is short for a command: main.py and main:app for uvicorn, server.js for node. A file that can be
// executed itself and is named by a path is a command.
func expand(command []string, dir string, getenv func(string) string) (Command, error) {
	if len(command) == 0 {
		return Command{}, nil
	}
	first, rest := command[0], command[1:]
	if c, err := short(first, rest, dir, getenv); c.Args != nil || err != nil {
		return c, err
	}
	return Command{Args: command}, nil
}

// short makes the command that a file or a name is short for; none: it is short for nothing.
func short(first string, rest []string, dir string, getenv func(string) string) (Command, error) {
	var c Command
	var err error
	switch {
	case strings.HasSuffix(first, ".py") && !executable(dir, first):
		c, err = python(first, rest, dir, getenv)
	case (strings.HasSuffix(first, ".js") || strings.HasSuffix(first, ".mjs") || strings.HasSuffix(first, ".cjs")) && !executable(dir, first):
		if _, err := os.Stat(within(dir, first)); err != nil {
			return Command{}, fmt.Errorf("%w: %s: %w; name a file in %s", ErrNoApp, first, errors.Unwrap(err), dir)
		}
		c = Command{Args: append([]string{"node", first}, rest...), Notes: []Note{{"program", within(dir, first)}}}
	case importString(first):
		if _, err := os.Stat(within(dir, first)); err == nil {
			break
		}
		c = Command{Args: append([]string{uvicorn(dir, getenv), first}, rest...), Notes: []Note{{"searched", dir}, {"import", first}}}
	}
	if err != nil || c.Args == nil {
		return c, err
	}
	return c, misplaced(first, rest, c.Args)
}

// ours are options of gapless run that people write behind what is short for a command. There they would go to the server.
var ours = option{names: []string{
	"-w", "--workers", "--host", "--port", "--listen", "--accept", "--ready", "--adapter", "--settle", "--start-timeout", "--drain-timeout", "--keep", "--preview", "--lame-duck",
}}

// misplaced is the error for an option of gapless behind what is short for a command.
func misplaced(first string, rest, full []string) error {
	flag, value, found := ours.in(rest)
	if !found {
		return nil
	}
	text := strings.TrimSpace(flag + " " + value)
	own := ""
	if filepath.Base(full[0]) == "node" {
		own = ", or, if it is the program's own, gapless run -- " + strings.Join(full, " ")
	}
	return fmt.Errorf("%w: %s stands behind %s: write it before: gapless run %s %s%s", ErrOption, text, first, text, first, own)
}

// executable says whether a word is the path of a file that can be run as it is.
func executable(dir, word string) bool {
	if !strings.Contains(word, "/") {
		return false // it would be looked for in PATH
	}
	st, err := os.Stat(within(dir, word))
	return err == nil && !st.IsDir() && st.Mode()&0o111 != 0
}

func within(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// importString says whether a word is MODULE:ATTRIBUTE.
func importString(word string) bool {
	module, attribute, ok := strings.Cut(word, ":")
	return ok && dotted(module) && dotted(strings.TrimSuffix(attribute, "()"))
}

// dotted says whether a word is made of Python's names and dots.
func dotted(word string) bool {
	for _, name := range strings.Split(word, ".") {
		if name == "" || name[0] >= '0' && name[0] <= '9' {
			return false
		}
		for _, r := range name {
			if r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') {
				return false
			}
		}
	}
	return true
}

// python makes uvicorn's command of a file, as `fastapi run FILE` does: the module is named from the folder above the
// packages that it is in.
func python(file string, rest []string, dir string, getenv func(string) string) (Command, error) {
	path := within(dir, file)
	source, err := readSome(path)
	if err != nil {
		return Command{}, fmt.Errorf("%w: %w; name a file in %s, or MODULE:APP", ErrNoApp, err, dir)
	}
	name, kind := application(source)
	if name == "" {
		return Command{}, fmt.Errorf("%w: %s makes none such as app = FastAPI(); name it as MODULE:APP, or run a server of its own with gapless run -- python %s",
			ErrNoApp, file, file)
	}
	module := []string{strings.TrimSuffix(filepath.Base(path), ".py")}
	if module[0] == "__init__" {
		module = nil
	}
	root := filepath.Dir(path)
	for {
		if _, err := os.Stat(filepath.Join(root, "__init__.py")); err != nil || root == filepath.Dir(root) {
			break
		}
		module = append([]string{filepath.Base(root)}, module...)
		root = filepath.Dir(root)
	}
	target := strings.Join(module, ".") + ":" + name
	command := []string{uvicorn(dir, getenv), target}
	if filepath.Clean(root) != filepath.Clean(dir) {
		command = append(command, "--app-dir", root)
	}
	notes := []Note{{"searched", root}, {"module", path}, {"import", target}}
	if kind == "FastAPI" {
		notes = append(notes, Note{"docs", "{url}/docs"})
	}
	return Command{Args: append(command, rest...), Notes: notes}, nil
}

func readSome(path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if st.IsDir() || st.Size() > maxSource {
		return "", fmt.Errorf("%s is no program's file", path)
	}
	text, err := os.ReadFile(path)
	return string(text), err
}

// application finds the name of the ASGI application in a program and what made it: app and api before any other, the
// first before the later ones. The program is not run for it.
func application(source string) (name, kind string) {
	made := regexp.MustCompile(`(?m)^([A-Za-z_]\w*)[ \t]*(?::[^=\n]*)?=[ \t]*(?:\w+\.)*(FastAPI|Starlette|Litestar|Quart|Sanic|BlackSheep)\(`)
	defined := regexp.MustCompile(`(?m)^async def (app|application|api)\(`)
	found := append(made.FindAllStringSubmatch(source, -1), defined.FindAllStringSubmatch(source, -1)...)
	for _, want := range []string{"app", "api", ""} {
		for _, m := range found {
			if want == "" || m[1] == want {
				if len(m) > 2 {
					kind = m[2]
				}
				return m[1], kind
			}
		}
	}
	return "", ""
}

// uvicorn is the one of the environment that is active or lies beside the program, or that of PATH.
func uvicorn(dir string, getenv func(string) string) string {
	for _, env := range []string{getenv("VIRTUAL_ENV"), filepath.Join(dir, ".venv")} {
		if env == "" {
			continue
		}
		path := filepath.Join(env, "bin", "uvicorn")
		if st, err := os.Stat(path); err == nil && st.Mode()&0o111 != 0 {
			return path
		}
	}
	return "uvicorn"
}
