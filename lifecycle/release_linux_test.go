package lifecycle

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gapless/internal/packet"
)

// deploy writes a program into a new directory of a release and points the symbolic link current to it.
func deploy(t *testing.T, root, name string) {
	t.Helper()
	dir := filepath.Join(root, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program(t, filepath.Join(dir, "server"), name)
	next := filepath.Join(root, "next")
	if err := os.Symlink(name, next); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, filepath.Join(root, "current")); err != nil {
		t.Fatal(err)
	}
}

// program writes an executable under a new inode.
func program(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte("#!/bin/sh\necho "+text+"\n"), 0o755); err != nil { //nolint:gosec // it is to be executed
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// contents reads a file through a descriptor that may be O_PATH.
func contents(t *testing.T, f *os.File) string {
	t.Helper()
	fd, err := packet.Descriptor(f)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func resolve(t *testing.T, chdir string, command ...string) *release {
	t.Helper()
	r, err := resolveRelease(chdir, command)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	return r
}

func TestRelease_StaysWhenTheLinkMoves(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	deploy(t, root, "rel1")
	current := filepath.Join(root, "current")
	first := resolve(t, current, "./server", "-x")
	deploy(t, root, "rel2")
	second := resolve(t, current, "./server")
	for _, tc := range []struct {
		r    *release
		name string
	}{{first, "rel1"}, {second, "rel2"}} {
		if want := filepath.Join(root, tc.name); tc.r.dirName != want || tc.r.path != want+"/server" {
			t.Errorf("pinned %s and %s, want those in %s", tc.r.dirName, tc.r.path, want)
		}
		if tc.r.replacement() != nil {
			t.Errorf("%s has been replaced", tc.name)
		}
		if !strings.Contains(contents(t, tc.r.exe), tc.name) {
			t.Errorf("the pinned file of %s is another one", tc.name)
		}
	}
	if !slices.Equal(first.argv, []string{"./server", "-x"}) {
		t.Errorf("argument vector %q", first.argv)
	}
	// The first release is tidied away while its workers still run.
	if err := os.RemoveAll(filepath.Join(root, "rel1")); err != nil {
		t.Fatal(err)
	}
	exe := first.replacement()
	if exe == nil || !strings.Contains(contents(t, exe), "rel1") {
		t.Error("the removed program is not run by its descriptor")
	}
}

func TestRelease_RunsThePinnedFileAfterAReplacement(t *testing.T) {
	path := filepath.Join(t.TempDir(), "server")
	program(t, path, "old")
	r := resolve(t, "", path)
	if r.replacement() != nil {
		t.Fatal("nothing has been replaced")
	}
	program(t, path, "new")
	exe := r.replacement()
	if exe == nil || !strings.Contains(contents(t, exe), "old") {
		t.Error("the pinned program is not what runs")
	}
	// Written over in place there is only the new one, whichever way it is named.
	path2 := filepath.Join(t.TempDir(), "server")
	program(t, path2, "old")
	r2 := resolve(t, "", path2)
	if err := os.WriteFile(path2, []byte("#!/bin/sh\necho new\n"), 0o755); err != nil { //nolint:gosec // as above
		t.Fatal(err)
	}
	if exe := r2.replacement(); exe != nil && !strings.Contains(contents(t, exe), "new") {
		t.Error("the file changed and did not")
	}
}

func TestRelease_FindsTheCommandInPATH(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	program(t, filepath.Join(dir, "my-server"), "x")
	t.Setenv("PATH", dir)
	if r := resolve(t, "/", "my-server"); r.path != filepath.Join(dir, "my-server") || r.dirName != "/" {
		t.Errorf("found %s in %s", r.path, r.dirName)
	}
}

func TestRelease_WithoutACommandIsTheBuiltInApp(t *testing.T) {
	r := resolve(t, "")
	if r.path != "/proc/self/exe" || !slices.Equal(r.argv, []string{"gapless", "app"}) || r.replacement() != nil {
		t.Errorf("got %+v", r)
	}
}

func TestRelease_Refuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/data", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", dir+"/dangling"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, chdir, command string
		want                 []string
	}{
		{"no such directory", dir + "/no", "sh", []string{"--chdir " + dir + "/no: no such file or directory; create it or name another"}},
		{"a dangling link", dir + "/dangling", "sh", []string{"--chdir ", "no such file"}},
		{"a file as directory", dir + "/data", "sh", []string{"--chdir ", "not a directory; name a directory that can be read"}},
		{"not in PATH", dir, "no-such-command", []string{`command "no-such-command" not found in PATH; install it, or name it with its path`}},
		{"no such file", dir, "./server", []string{`command "`, `/server": no such file or directory`}},
		{"not executable", dir, "./data", []string{"/data\" is not executable; chmod +x it, or name the program that runs it"}},
		{"a directory", "/", dir, []string{"is not executable"}},
		{"an empty name", dir, "", []string{`command "" not found`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := descriptors(t)
			r, err := resolveRelease(tc.chdir, []string{tc.command})
			if err == nil {
				r.close()
				t.Fatalf("resolved %+v", r)
			}
			for _, part := range tc.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q lacks %q", err, part)
				}
			}
			if after := descriptors(t); after != before {
				t.Errorf("%d descriptors are left open", after-before)
			}
		})
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
