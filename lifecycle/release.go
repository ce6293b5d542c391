package lifecycle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"gapless/internal/execstep"

	"golang.org/x/sys/unix"
)

// release is what a generation's workers are made of, resolved once and pinned: a worker that is restarted gets the
// directory and the executable that its predecessor had, whatever a symbolic link or a file name has come to mean since.
type release struct {
	dirName string   // resolved
	dir     *os.File // open, so that it stays even if it is renamed
	path    string   // of the executable, resolved
	argv    []string // as configured; the command's own name first
	exe     *os.File // holds the executable's inode
	id      fileID
}

// fileID tells whether a path still names the same file.
type fileID struct {
	dev, ino uint64
	mtime    unix.Timespec
}

// resolveRelease finds chdir ("": where gapless was started) and the command as they are now. An empty command is the
// built-in app.
func resolveRelease(chdir string, command []string) (*release, error) {
	if chdir == "" {
		wd, err := os.Getwd()
		if err != nil {
			return nil, fmt.Errorf("working directory: %w", err)
		}
		chdir = wd
	}
	dirName, err := filepath.Abs(chdir)
	if err == nil {
		dirName, err = filepath.EvalSymlinks(dirName)
	}
	if err != nil {
		return nil, fmt.Errorf("--chdir %s: %w; create it or name another", chdir, reason(err))
	}
	r := &release{dirName: dirName}
	if r.dir, err = os.OpenFile(dirName, unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("--chdir %s: %w; name a directory that can be read", chdir, reason(err))
	}
	if len(command) == 0 {
		// The exec step is our own binary, and /proc/self/exe there is that binary, also when its file has gone.
		r.path, r.argv = execstep.OwnBinary, []string{"gapless", "app"}
		return r, nil
	}
	r.argv = command
	if err := r.resolveCommand(command[0]); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *release) resolveCommand(name string) error {
	path := name
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(path) {
			path = filepath.Join(r.dirName, path)
		}
	} else {
		found, err := exec.LookPath(name)
		if err != nil && !errors.Is(err, exec.ErrDot) {
			return fmt.Errorf("command %q not found in PATH; install it, or name it with its path", name)
		}
		if path, err = filepath.Abs(found); err != nil {
			return fmt.Errorf("command %q: %w", name, err)
		}
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("command %q: %w; build it, or name another program", path, reason(err))
	}
	info, err := os.Stat(resolved)
	if err != nil {
		return fmt.Errorf("command %q: %w", path, reason(err))
	}
	if info.IsDir() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("command %q is not executable; chmod +x it, or name the program that runs it", path)
	}
	if r.exe, err = openPinned(resolved); err != nil {
		return fmt.Errorf("command %q: %w", path, reason(err))
	}
	r.path = resolved
	r.id, err = identify(r.exe)
	return err
}

// replacement returns the descriptor to execute when the path has come to name another file, else nil.
func (r *release) replacement() *os.File {
	if r.exe == nil {
		return nil
	}
	var st unix.Stat_t
	if unix.Stat(r.path, &st) == nil && idOf(&st) == r.id {
		return nil
	}
	return r.exe
}

func (r *release) close() {
	for _, f := range []*os.File{r.dir, r.exe} {
		if f != nil {
			f.Close()
		}
	}
}

func identify(f *os.File) (fileID, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return fileID{}, err
	}
	var st unix.Stat_t
	var statErr error
	if err := raw.Control(func(fd uintptr) { statErr = unix.Fstat(int(fd), &st) }); err != nil {
		return fileID{}, err
	}
	return idOf(&st), statErr
}

// reason strips the operation and the path that the caller's message has already.
func reason(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
