//go:build unix

package adapter

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// ErrFolder is wrapped by the errors of a folder that cannot be had, or that others could change.
var ErrFolder = errors.New("no folder for the adapter")

// Folder is where one gapless, from its start to its end, keeps the files of its adapters. Each version of them has a
// folder of its own within, so that generations of different binaries do not meet.
type Folder struct {
	path  string
	world bool // the workers are of another user: they may read
}

// places returns where folders may lie: first among the user's runtime files, then among the temporary ones.
func places(uid int, getenv func(string) string) []string {
	var all []string
	switch dir := getenv("GAPLESS_RUNTIME_DIR"); {
	case filepath.IsAbs(dir):
		all = append(all, dir)
	case filepath.IsAbs(getenv("XDG_RUNTIME_DIR")):
		all = append(all, getenv("XDG_RUNTIME_DIR"))
	case uid == 0:
		all = append(all, "/run")
	}
	temp := getenv("TMPDIR")
	if !filepath.IsAbs(temp) {
		temp = "/tmp"
	}
	return append(all, temp)
}

func folderIn(place string, parent int) string {
	return filepath.Join(place, fmt.Sprintf("gapless-adapter-%d", parent))
}

// OpenFolder makes or finds the folder of the gapless whose parent has that PID, for workers of the user reader (nil:
// this one). getenv is os.Getenv.
func OpenFolder(parent int, reader *int, getenv func(string) string) (*Folder, error) {
	uid := os.Geteuid()
	var errs []error
	for _, place := range places(uid, getenv) {
		f := &Folder{path: folderIn(place, parent), world: reader != nil && *reader != uid}
		err := f.open(uid)
		if err == nil && f.world {
			err = reachable(f.path, *reader)
		}
		if err == nil {
			return f, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("%w: %w", ErrFolder, errors.Join(errs...))
}

func (f *Folder) open(uid int) error {
	if strings.ContainsAny(f.path, ": \"\\") {
		return fmt.Errorf("%s: the path cannot stand in a list of paths; set TMPDIR to one without colons and blanks", f.path)
	}
	mode := fs.FileMode(0o700)
	if f.world {
		mode = 0o711 // to be passed through, and not listed
	}
	if err := os.Mkdir(f.path, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(f.path)
	if err != nil {
		return err
	}
	if err := ours(info, uid); err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	if !info.IsDir() {
		return fmt.Errorf("%s: is no folder; remove it", f.path)
	}
	if info.Mode().Perm()&mode != mode { // the umask, or an earlier generation whose workers were of another user
		return os.Chmod(f.path, mode)
	}
	return nil
}

// ours says whether nobody but the user may change what the file or folder holds.
func ours(info fs.FileInfo, uid int) error {
	sys, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
		return errors.ErrUnsupported
	case int(sys.Uid) != uid:
		return fmt.Errorf("belongs to user %d and this is user %d; remove it", sys.Uid, uid)
	case !info.IsDir() && !info.Mode().IsRegular():
		return errors.New("is no plain file or folder; remove it")
	case info.Mode().Perm()&0o022 != 0:
		return errors.New("others may write to it; remove it")
	}
	return nil
}

// reachable tells whether a user may pass through all folders above path. Groups are left out of account.
func reachable(path string, uid int) error {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		need := fs.FileMode(0o001)
		if sys, ok := info.Sys().(*syscall.Stat_t); ok && int(sys.Uid) == uid {
			need = 0o100
		}
		if info.Mode().Perm()&need == 0 && uid != 0 {
			return fmt.Errorf("%s: user %d may not pass through %s", path, uid, dir)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// Environ makes sure that the files of an adapter are there as this binary holds them, and returns env with what has
// them loaded.
func (f *Folder) Environ(name string, env []string) ([]string, error) {
	k, ok := kitOf(name)
	if !ok {
		return env, fmt.Errorf("no adapter is called %q", name)
	}
	dir, err := f.write(name, k.files)
	if err != nil {
		return env, fmt.Errorf("write the adapter's files: %w", err)
	}
	return k.environ(env, dir), nil
}

// write puts the files into a folder that is named after what they hold.
func (f *Folder) write(name string, files map[string][]byte) (string, error) {
	uid := os.Geteuid()
	if err := f.open(uid); err != nil { // again: something may have cleared it away
		return "", err
	}
	names := slices.Sorted(maps.Keys(files))
	sum := sha256.New()
	for _, n := range names {
		fmt.Fprintf(sum, "%s %d\n%s", n, len(files[n]), files[n])
	}
	dir := filepath.Join(f.path, name+"-"+hex.EncodeToString(sum.Sum(nil)[:6]))
	dirMode, fileMode := fs.FileMode(0o700), fs.FileMode(0o600)
	if f.world {
		dirMode, fileMode = 0o755, 0o644
	}
	if err := os.Mkdir(dir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	info, err := os.Lstat(dir)
	if err == nil {
		err = ours(info, uid)
	}
	if err == nil && info.Mode().Perm()&dirMode != dirMode {
		err = os.Chmod(dir, dirMode)
	}
	if err != nil {
		return "", err
	}
	for _, n := range names {
		if err := replace(filepath.Join(dir, n), files[n], fileMode, uid); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// replace puts a file in place of one that is not as it should be, without a moment at which it is half written.
func replace(path string, data []byte, mode fs.FileMode, uid int) error {
	if info, err := os.Lstat(path); err == nil && ours(info, uid) == nil && info.Mode().Perm()&mode == mode {
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
			return nil
		}
	}
	next, err := os.CreateTemp(filepath.Dir(path), ".next-")
	if err != nil {
		return err
	}
	defer os.Remove(next.Name()) // in vain once it is renamed
	_, err = next.Write(data)
	if err == nil {
		err = next.Chmod(mode)
	}
	if err = errors.Join(err, next.Close()); err != nil {
		return err
	}
	return os.Rename(next.Name(), path)
}

// RemoveFolders removes what the gapless whose parent has that PID has written.
func RemoveFolders(parent int, getenv func(string) string) error {
	uid := os.Geteuid()
	var errs []error
	for _, place := range places(uid, getenv) {
		path := folderIn(place, parent)
		info, err := os.Lstat(path)
		if err != nil || ours(info, uid) != nil {
			continue // never written, or not by us
		}
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}
