package unit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Runner runs `systemctl ARGS...`. It returns what it printed, and an error that holds the end of that.
type Runner func(ctx context.Context, args ...string) (output string, err error)

// Installer puts units where systemd finds them, and takes them away.
type Installer struct {
	// Folder is where the unit files go. It is made if it is not there.
	Folder string
	// Systemctl speaks to the manager that reads Folder.
	Systemctl Runner
	// Step is told what is about to be done, one line each; nil: nobody is.
	Step func(text string)
	// DryRun leaves everything as it is: only Step is told, and nothing is asked of systemd but what there is: if it does
	// not answer, nothing is there.
	DryRun bool
}

// The errors of Installer.
var (
	// ErrNotOurs is what an error matches that is about a unit which Install did not write.
	ErrNotOurs = errors.New("was not written by gapless install")
	// ErrNotInstalled says that there is no such unit.
	ErrNotInstalled = errors.New("is not installed")
)

// mark is the first line of what Install writes for the unit name.
func mark(name string) string {
	return fmt.Sprintf("# Written by gapless install for %s, and replaced by the next; gapless uninstall removes it.\n", name)
}

// Installed is what Install has done.
type Installed struct {
	Replaced bool // there was one already
	Ran      bool // and it runs on with the settings that it had
}

// Install writes the units of name, the service last, has systemd read them, enables them and starts them. If anything
// fails, everything is as it was before, and the error says why.
func (in *Installer) Install(ctx context.Context, name string, files []File) (done Installed, err error) {
	service := name + ".service"
	before, err := in.state(ctx, service)
	if err != nil {
		return done, err
	}
	if before.path != "" && !same(before.path, filepath.Join(in.Folder, service)) {
		return done, fmt.Errorf("%s is there already, as %s, and %w: choose another --name", service, before.path, ErrNotOurs)
	}
	old, err := in.ours(name)
	if err != nil {
		return done, err
	}
	for _, f := range files {
		if _, ok := old[f.Name]; !ok {
			if err := in.refuseForeign(f.Name); err != nil {
				return done, err
			}
		}
	}
	done = Installed{Replaced: len(old) > 0, Ran: before.active}

	var undo undoing
	defer func() { err = undo.after(ctx, err) }()

	names := make([]string, len(files))
	for i, f := range files {
		names[i] = f.Name
	}
	gone := slices.DeleteFunc(keys(old), func(f string) bool { return slices.Contains(names, f) })
	if len(gone) > 0 {
		if err := in.disable(ctx, &undo, gone); err != nil {
			return done, err
		}
	}
	for _, f := range gone {
		if err := in.remove(&undo, f, old[f]); err != nil {
			return done, err
		}
	}
	undo.add(func(ctx context.Context) error { return in.systemctl(ctx, "daemon-reload") })
	for _, f := range files {
		if err := in.write(&undo, f.Name, mark(name)+f.Text, old); err != nil {
			return done, err
		}
	}
	if err := in.systemctl(ctx, "daemon-reload"); err != nil {
		return done, err
	}
	// What was not there before is stopped; what was, is left as it was.
	for _, f := range names {
		if _, ok := old[f]; !ok {
			undo.add(func(ctx context.Context) error {
				err := in.systemctl(ctx, "disable", "--now", f)
				_, _ = in.Systemctl(ctx, "reset-failed", f) // else it would be listed as failed for ever; it need not have failed
				return err
			})
		} else if f == service && !before.active {
			undo.add(func(ctx context.Context) error { return in.systemctl(ctx, "stop", f) })
		}
	}
	if len(old) > 0 && !before.enabled {
		undo.add(func(ctx context.Context) error { return in.systemctl(ctx, "disable", service) })
	}
	return done, in.systemctl(ctx, append([]string{"enable", "--now"}, names...)...)
}

// Uninstall stops and disables the units of name, waiting until gapless has drained, and removes their files. If anything
// fails, everything is as it was before as far as that is possible, and the error says why.
func (in *Installer) Uninstall(ctx context.Context, name string) (err error) {
	files, err := in.ours(name)
	if err != nil {
		return err
	}
	if len(files) == 0 {
		if err := in.refuseForeign(name + ".service"); err != nil {
			return err
		}
		return fmt.Errorf("%s %w in %s", name, ErrNotInstalled, in.Folder)
	}
	var undo undoing
	defer func() { err = undo.after(ctx, err) }()
	// Sockets first, or a connection that comes meanwhile would start it again.
	names := keys(files)
	if err := in.disable(ctx, &undo, names); err != nil {
		return err
	}
	undo.add(func(ctx context.Context) error { return in.systemctl(ctx, "daemon-reload") })
	for _, f := range names {
		if err := in.remove(&undo, f, files[f]); err != nil {
			return err
		}
	}
	return in.systemctl(ctx, "daemon-reload")
}

// disable stops and disables units. Undone, each is again what it was.
func (in *Installer) disable(ctx context.Context, undo *undoing, names []string) error {
	for _, name := range names {
		was, err := in.state(ctx, name)
		if err != nil {
			return err
		}
		if was.enabled {
			undo.add(func(ctx context.Context) error { return in.systemctl(ctx, "enable", name) })
		}
		if was.active {
			undo.add(func(ctx context.Context) error { return in.systemctl(ctx, "start", name) })
		}
	}
	return in.systemctl(ctx, append([]string{"disable", "--now"}, names...)...)
}

func (in *Installer) step(format string, args ...any) {
	if in.Step != nil {
		in.Step(fmt.Sprintf(format, args...))
	}
}

// systemctl changes something.
func (in *Installer) systemctl(ctx context.Context, args ...string) error {
	in.step("systemctl %s", strings.Join(args, " "))
	if in.DryRun {
		return nil
	}
	_, err := in.Systemctl(ctx, args...)
	return err
}

// state is what systemd knows of a unit.
type state struct {
	path            string // of its file
	enabled, active bool
}

func (in *Installer) state(ctx context.Context, name string) (state, error) {
	out, err := in.Systemctl(ctx, "show", "--property=FragmentPath,UnitFileState,ActiveState", name)
	if err != nil && in.DryRun { // where no systemd runs, as in the build of an image, it knows of no unit
		return state{}, nil
	}
	if err != nil {
		return state{}, err
	}
	var s state
	for line := range strings.Lines(out) {
		switch key, value, _ := strings.Cut(strings.TrimSpace(line), "="); key {
		case "FragmentPath":
			s.path = value
		case "UnitFileState":
			s.enabled = value == "enabled"
		case "ActiveState":
			s.active = value == "active" || value == "activating" || value == "reloading"
		}
	}
	return s, nil
}

// ours returns the files that an Install wrote for name, by their names: sockets that it has no more among them.
func (in *Installer) ours(name string) (map[string]string, error) {
	entries, err := os.ReadDir(in.Folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	files := make(map[string]string)
	for _, e := range entries {
		n := e.Name()
		if n != name+".service" && (!strings.HasPrefix(n, name) || !strings.HasSuffix(n, ".socket")) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(in.Folder, n))
		if errors.Is(err, fs.ErrNotExist) || err == nil && !strings.HasPrefix(string(text), mark(name)) {
			continue
		}
		if err != nil {
			return nil, err
		}
		files[n] = string(text)
	}
	return files, nil
}

// same tells whether two paths lead to one file: what is above a folder may be a symbolic link.
func same(a, b string) bool {
	if a == b {
		return true
	}
	ai, errA := os.Stat(a)
	bi, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(ai, bi)
}

func (in *Installer) refuseForeign(file string) error {
	path := filepath.Join(in.Folder, file)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s %w: choose another --name, or remove it", path, ErrNotOurs)
	}
	return nil
}

func (in *Installer) write(undo *undoing, name, text string, old map[string]string) error {
	path := filepath.Join(in.Folder, name)
	in.step("write %s", path)
	if in.DryRun {
		return nil
	}
	if err := os.MkdirAll(in.Folder, 0o755); err != nil {
		return err
	}
	if before, ok := old[name]; ok {
		undo.add(func(context.Context) error { return replace(path, before) })
	} else {
		undo.add(func(context.Context) error { return os.Remove(path) })
	}
	if err := replace(path, text); err != nil {
		undo.drop()
		return err
	}
	return nil
}

func (in *Installer) remove(undo *undoing, name, text string) error {
	path := filepath.Join(in.Folder, name)
	in.step("remove %s", path)
	if in.DryRun {
		return nil
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	undo.add(func(context.Context) error { return replace(path, text) })
	return nil
}

// replace writes a file so that nobody ever reads half of it.
func replace(path, text string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".gapless-*")
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// keys are the names of files in the order in which they are stopped: sockets first.
func keys(files map[string]string) []string {
	var names []string
	for n := range files {
		names = append(names, n)
	}
	slices.SortFunc(names, func(a, b string) int {
		if sa, sb := strings.HasSuffix(a, ".service"), strings.HasSuffix(b, ".service"); sa != sb {
			if sa {
				return 1
			}
			return -1
		}
		return strings.Compare(a, b)
	})
	return names
}

// undoing is what takes back what was done, the last first.
type undoing []func(context.Context) error

func (u *undoing) add(f func(context.Context) error) { *u = append(*u, f) }
func (u *undoing) drop()                             { *u = (*u)[:len(*u)-1] }

// after undoes everything if there is an error. That its context is over is no reason not to.
func (u *undoing) after(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	for _, f := range slices.Backward(*u) {
		if failed := f(ctx); failed != nil {
			err = fmt.Errorf("%w; and what had been done could not be undone: %w", err, failed)
		}
	}
	return err
}
