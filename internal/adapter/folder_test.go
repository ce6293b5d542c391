//go:build unix

package adapter

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// placed returns an environment whose runtime files are in a folder of the test.
func placed(t *testing.T) (dir string, getenv func(string) string) {
	t.Helper()
	dir = t.TempDir()
	return dir, func(name string) string {
		return map[string]string{"GAPLESS_RUNTIME_DIR": dir, "TMPDIR": filepath.Join(dir, "tmp")}[name]
	}
}

func pythonPath(t *testing.T, env []string) string {
	t.Helper()
	i := slices.IndexFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "PYTHONPATH=") })
	if i < 0 {
		t.Fatalf("no PYTHONPATH in %q", env)
	}
	path, _, _ := strings.Cut(strings.TrimPrefix(env[i], "PYTHONPATH="), ":")
	return path
}

func TestFolder_HoldsWhatTheBinaryHolds(t *testing.T) {
	dir, getenv := placed(t)
	f, err := OpenFolder(7, nil, getenv)
	if err != nil {
		t.Fatal(err)
	}
	env, err := f.Environ(Uvicorn, []string{"A=B"})
	if err != nil {
		t.Fatal(err)
	}
	path := pythonPath(t, env)
	hook := filepath.Join(path, "sitecustomize.py")
	want, err := os.ReadFile("python/sitecustomize.py")
	if err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		if got, err := os.ReadFile(hook); err != nil || string(got) != string(want) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		for _, p := range []string{filepath.Dir(path), path, hook} {
			if info, err := os.Stat(p); err != nil || info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s: %v, %v", p, info.Mode(), err)
			}
		}
		if files, err := os.ReadDir(path); err != nil || len(files) != 4 {
			t.Errorf("%v, %v", files, err)
		}
	}
	check()
	for name, spoil := range map[string]func() error{
		"another text":     func() error { return os.WriteFile(hook, []byte("x"), 0o600) },
		"others may write": func() error { return os.Chmod(hook, 0o666) },
		"no file":          func() error { return os.Remove(hook) },
		"no folder":        func() error { return os.RemoveAll(filepath.Dir(path)) },
		"a symbolic link": func() error {
			return errors.Join(os.Rename(hook, filepath.Join(dir, "moved")), os.Symlink(filepath.Join(dir, "moved"), hook))
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := spoil(); err != nil {
				t.Fatal(err)
			}
			if again, err := f.Environ(Uvicorn, []string{"A=B"}); err != nil || !slices.Equal(again, env) {
				t.Fatalf("%q, %v, want %q", again, err, env)
			}
			check()
		})
	}
	if err := RemoveFolders(7, getenv); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(path)); !os.IsNotExist(err) {
		t.Errorf("not removed: %v", err)
	}
	if err := RemoveFolders(7, getenv); err != nil {
		t.Errorf("removed twice: %v", err)
	}
}

// Where others could change it, or nothing can be written, there is no folder; where there is a second place, it serves.
func TestFolder_IsRefused(t *testing.T) {
	for _, tt := range []struct {
		name    string
		prepare func(dir string) error
		tmp     bool // the second place is good
	}{
		{"others may write", func(dir string) error {
			return errors.Join(os.Mkdir(folderIn(dir, 7), 0o700), os.Chmod(folderIn(dir, 7), 0o777))
		}, false},
		{"a symbolic link", func(dir string) error { return os.Symlink(os.TempDir(), folderIn(dir, 7)) }, false},
		{"a file", func(dir string) error { return os.WriteFile(folderIn(dir, 7), nil, 0o600) }, false},
		{"a file, and another place", func(dir string) error { return os.WriteFile(folderIn(dir, 7), nil, 0o600) }, true},
		{"no place at all", os.RemoveAll, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, getenv := placed(t)
			if err := tt.prepare(dir); err != nil {
				t.Fatal(err)
			}
			if tt.tmp {
				if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			f, err := OpenFolder(7, nil, getenv)
			if tt.tmp {
				if err != nil || filepath.Dir(f.path) != filepath.Join(dir, "tmp") {
					t.Errorf("got %v, %v", f, err)
				}
			} else if !errors.Is(err, ErrFolder) {
				t.Errorf("got %v, %v", f, err)
			}
		})
	}
	t.Run("a colon in the path", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "a:b")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if f, err := OpenFolder(7, nil, func(string) string { return dir }); !errors.Is(err, ErrFolder) {
			t.Errorf("got %v, %v", f, err)
		}
	})
}

// Workers of another user can read what is theirs to read, or are told that they cannot.
func TestFolder_ForAnotherUser(t *testing.T) {
	_, getenv := placed(t)
	other := os.Geteuid() + 1
	if f, err := OpenFolder(7, &other, getenv); !errors.Is(err, ErrFolder) {
		t.Fatalf("below a private folder: %v, %v", f, err)
	}
	if reachable("/tmp/x", other) != nil {
		t.Fatal("/tmp is to be passed through by all")
	}
	open, err := os.MkdirTemp("/tmp", "gapless-adapter-test-")
	if err == nil {
		err = os.Chmod(open, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(open) })
	f, err := OpenFolder(7, &other, func(string) string { return open })
	if err != nil {
		t.Fatal(err)
	}
	env, err := f.Environ(Uvicorn, nil)
	if err != nil {
		t.Fatal(err)
	}
	hook := filepath.Join(pythonPath(t, env), "sitecustomize.py")
	if info, err := os.Stat(hook); err != nil || info.Mode().Perm() != 0o644 || reachable(hook, other) != nil {
		t.Errorf("%v, %v, %v", info.Mode(), err, reachable(hook, other))
	}
}

func TestWithList(t *testing.T) {
	for _, tt := range []struct {
		name   string
		env    []string
		before bool
		want   []string
	}{
		{"new", []string{"B=1"}, true, []string{"B=1", "A=x"}},
		{"empty", []string{"A=", "B=1"}, true, []string{"A=x", "B=1"}},
		{"before", []string{"A=y:z"}, true, []string{"A=x:y:z"}},
		{"behind", []string{"A=y:z"}, false, []string{"A=y:z:x"}},
		{"the last one counts", []string{"A=y", "A=z"}, true, []string{"A=y", "A=x:z"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := slices.Clone(tt.env)
			if got := withList(tt.env, "A", ":", "x", tt.before); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if !slices.Equal(tt.env, before) {
				t.Errorf("changed its argument to %q", tt.env)
			}
		})
	}
}

// Each adapter has files, and none is empty.
func TestKits(t *testing.T) {
	for _, name := range []string{Uvicorn, Node} {
		k, ok := kitOf(name)
		if !ok || len(k.files) == 0 {
			t.Errorf("%s has no files", name)
		}
		for file, text := range k.files {
			if len(text) == 0 {
				t.Errorf("%s: %s is empty", name, file)
			}
		}
	}
}

func TestNode_Options(t *testing.T) {
	k, _ := kitOf(Node)
	for name, tt := range map[string]struct{ had, want string }{
		"none":     {"", "NODE_OPTIONS=--require=/d/register.cjs"},
		"some":     {"NODE_OPTIONS=--enable-source-maps", "NODE_OPTIONS=--enable-source-maps --require=/d/register.cjs"},
		"confined": {"NODE_OPTIONS=--permission", "NODE_OPTIONS=--permission"},
	} {
		t.Run(name, func(t *testing.T) {
			var env []string
			if tt.had != "" {
				env = append(env, tt.had)
			}
			if got := k.environ(env, "/d"); len(got) != 1 || got[0] != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
