package unit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

var errFault = errors.New("a fault")

// manager is a systemd that knows as much as an Installer sees of it.
type manager struct {
	folder          string
	enabled, active map[string]bool
	elsewhere       map[string]string // units of others, by their paths
	calls           []string
	failAt          int // the number of the call that changes something and fails; 0: none
	changes         int
	ctx             context.Context // cancelled with the fault
	cancel          context.CancelFunc
}

func newManager(t *testing.T) *manager {
	m := &manager{folder: t.TempDir(), enabled: map[string]bool{}, active: map[string]bool{}, elsewhere: map[string]string{}}
	m.ctx, m.cancel = context.WithCancel(t.Context())
	t.Cleanup(m.cancel)
	return m
}

func (m *manager) run(ctx context.Context, args ...string) (string, error) {
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if args[0] == "show" {
		name := args[len(args)-1]
		path := m.elsewhere[name]
		if own := filepath.Join(m.folder, name); path == "" {
			if _, err := os.Stat(own); err == nil {
				path = own
			}
		}
		state, active := "", "inactive"
		if m.enabled[name] {
			state = "enabled"
		}
		if m.active[name] {
			active = "active"
		}
		return fmt.Sprintf("FragmentPath=%s\nUnitFileState=%s\nActiveState=%s\n", path, state, active), nil
	}
	m.calls = append(m.calls, strings.Join(args, " "))
	m.changes++
	verb, names := args[0], args[1:]
	if len(names) > 0 && names[0] == "--now" {
		names = names[1:]
	}
	now := slices.Contains(args, "--now")
	for i, n := range names {
		if m.changes == m.failAt && i == len(names)-1 { // half of it is done
			m.cancel()
			return "", errFault
		}
		switch verb {
		case "enable":
			m.enabled[n] = true
			m.active[n] = m.active[n] || now
		case "disable":
			delete(m.enabled, n)
			if now {
				delete(m.active, n)
			}
		case "start":
			m.active[n] = true
		case "stop":
			delete(m.active, n)
		}
	}
	if m.changes == m.failAt {
		m.cancel()
		return "", errFault
	}
	return "", nil
}

func (m *manager) installer() *Installer { return &Installer{Folder: m.folder, Systemctl: m.run} }

// picture is all that there is.
type picture struct {
	Files           map[string]string
	Enabled, Active map[string]bool
}

func (m *manager) picture(t *testing.T) picture {
	t.Helper()
	p := picture{map[string]string{}, maps.Clone(m.enabled), maps.Clone(m.active)}
	maps.DeleteFunc(p.Active, func(_ string, is bool) bool { return !is })
	entries, err := os.ReadDir(m.folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(m.folder, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		p.Files[e.Name()] = string(text)
	}
	return p
}

func plainFiles() []File { return []File{{"app.service", "[Service]\n"}} }
func socketFiles() []File {
	return []File{{"app.socket", "[Socket]\n"}, {"app-admin.socket", "[Socket]\n#admin\n"}, {"app.service", "[Service]\n#s\n"}}
}

func (m *manager) must(t *testing.T, files []File) {
	t.Helper()
	if _, err := m.installer().Install(t.Context(), "app", files); err != nil {
		t.Fatal(err)
	}
}

func TestInstall_EnablesAndStarts(t *testing.T) {
	m := newManager(t)
	m.must(t, socketFiles())
	all := map[string]bool{"app.service": true, "app.socket": true, "app-admin.socket": true}
	got := m.picture(t)
	if !maps.Equal(got.Enabled, all) || !maps.Equal(got.Active, all) || len(got.Files) != 3 {
		t.Fatalf("got %+v", got)
	}
	for name, text := range got.Files {
		if !strings.HasPrefix(text, "# Written by gapless install for app,") {
			t.Errorf("%s begins with\n%s", name, text)
		}
	}
	// Another app whose name begins alike is another app's.
	if _, err := m.installer().Install(t.Context(), "app-two", []File{{"app-two.service", ""}, {"app-two.socket", ""}}); err != nil {
		t.Fatal(err)
	}
	done, err := m.installer().Install(t.Context(), "app", plainFiles())
	if err != nil || !done.Replaced || !done.Ran {
		t.Fatalf("the second install did %+v, %v", done, err)
	}
	left := map[string]bool{"app.service": true, "app-two.service": true, "app-two.socket": true}
	if got := m.picture(t); !maps.Equal(got.Enabled, left) || !maps.Equal(got.Active, left) || len(got.Files) != 3 {
		t.Errorf("after an install without sockets: %+v", got)
	}
	if err := m.installer().Uninstall(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	delete(left, "app.service")
	if got := m.picture(t); !maps.Equal(got.Enabled, left) || !maps.Equal(got.Active, left) || len(got.Files) != 2 {
		t.Errorf("after uninstall: %+v", got)
	}
	if err := m.installer().Uninstall(t.Context(), "app"); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("a second uninstall: %v", err)
	}
}

// Whichever step fails, and be it that its context has ended: everything is as before.
func TestInstaller_AFaultLeavesWhatWasThere(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before func(*testing.T, *manager)
		do     func(context.Context, *Installer) error
	}{
		{"the first install", func(*testing.T, *manager) {}, install(socketFiles)},
		{"an install over one that runs", func(t *testing.T, m *manager) { m.must(t, plainFiles()) }, install(socketFiles)},
		{"an install without the sockets that there were", func(t *testing.T, m *manager) { m.must(t, socketFiles()) }, install(plainFiles)},
		{"an install over one that is stopped", func(t *testing.T, m *manager) {
			m.must(t, plainFiles())
			delete(m.active, "app.service")
		}, install(plainFiles)},
		{"an install over one that is disabled", func(t *testing.T, m *manager) {
			m.must(t, plainFiles())
			delete(m.active, "app.service")
			delete(m.enabled, "app.service")
		}, install(plainFiles)},
		{"uninstall", func(t *testing.T, m *manager) { m.must(t, socketFiles()) },
			func(ctx context.Context, in *Installer) error { return in.Uninstall(ctx, "app") }},
		{"uninstall of one that is stopped", func(t *testing.T, m *manager) {
			m.must(t, socketFiles())
			clear(m.active)
		}, func(ctx context.Context, in *Installer) error { return in.Uninstall(ctx, "app") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for at := 1; ; at++ {
				m := newManager(t)
				tt.before(t, m)
				want := m.picture(t)
				m.changes, m.calls, m.failAt = 0, nil, at
				err := tt.do(m.ctx, m.installer())
				if m.changes < at {
					if err != nil {
						t.Errorf("without a fault: %v", err)
					}
					if at == 1 {
						t.Error("it changes nothing")
					}
					return
				}
				if got := m.picture(t); !errors.Is(err, errFault) || !reflect.DeepEqual(got, want) {
					t.Errorf("a fault at change %d (%v): %v\ngot  %+v\nwant %+v", at, m.calls, err, got, want)
				}
			}
		})
	}
}

func install(files func() []File) func(context.Context, *Installer) error {
	return func(ctx context.Context, in *Installer) error {
		_, err := in.Install(ctx, "app", files())
		return err
	}
}

func TestInstaller_RefusesWhatIsNotOurs(t *testing.T) {
	foreign := func(name string) func(*testing.T, *manager) {
		return func(t *testing.T, m *manager) {
			if err := os.WriteFile(filepath.Join(m.folder, name), []byte("[Unit]\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		name   string
		before func(*testing.T, *manager)
		do     func(context.Context, *Installer) error
	}{
		{"a service", foreign("app.service"), install(plainFiles)},
		{"a socket", foreign("app-admin.socket"), install(socketFiles)},
		{"a service of the distribution", func(_ *testing.T, m *manager) { m.elsewhere["app.service"] = "/lib/systemd/system/app.service" }, install(plainFiles)},
		{"uninstall", foreign("app.service"), func(ctx context.Context, in *Installer) error { return in.Uninstall(ctx, "app") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newManager(t)
			tt.before(t, m)
			want := m.picture(t)
			if err := tt.do(t.Context(), m.installer()); !errors.Is(err, ErrNotOurs) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v", err)
			}
			if got := m.picture(t); !reflect.DeepEqual(got, want) || m.changes != 0 {
				t.Errorf("got %+v after %d changes, want %+v", got, m.changes, want)
			}
		})
	}
}

func TestInstaller_DryRunChangesNothing(t *testing.T) {
	m := newManager(t)
	m.must(t, socketFiles())
	want := m.picture(t)
	m.changes = 0
	var steps []string
	in := m.installer()
	in.DryRun, in.Step = true, func(s string) { steps = append(steps, strings.ReplaceAll(s, m.folder, "FOLDER")) }
	if _, err := in.Install(t.Context(), "app", plainFiles()); err != nil {
		t.Fatal(err)
	}
	if err := in.Uninstall(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	if got := m.picture(t); !reflect.DeepEqual(got, want) || m.changes != 0 {
		t.Errorf("got %+v after %d changes", got, m.changes)
	}
	wantSteps := []string{
		"systemctl disable --now app-admin.socket app.socket", "remove FOLDER/app-admin.socket", "remove FOLDER/app.socket",
		"write FOLDER/app.service", "systemctl daemon-reload", "systemctl enable --now app.service",
		"systemctl disable --now app-admin.socket app.socket app.service", "remove FOLDER/app-admin.socket", "remove FOLDER/app.socket",
		"remove FOLDER/app.service", "systemctl daemon-reload",
	}
	if !slices.Equal(steps, wantSteps) {
		t.Errorf("got  %q\nwant %q", steps, wantSteps)
	}
}

// A folder that cannot be written to is the first fault that people meet.
func TestInstall_NoFolder(t *testing.T) {
	m := newManager(t)
	in := m.installer()
	file := filepath.Join(m.folder, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	in.Folder = filepath.Join(file, "user")
	if _, err := in.Install(t.Context(), "app", plainFiles()); err == nil {
		t.Error("no error")
	}
	if slices.ContainsFunc(m.calls, func(c string) bool { return strings.HasPrefix(c, "enable") }) {
		t.Errorf("called %q", m.calls)
	}
}
