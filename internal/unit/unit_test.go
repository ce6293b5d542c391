package unit

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gapless/internal/deadlines"
)

func typical() Settings {
	return Settings{
		Name: "app", Binary: "/usr/local/bin/gapless",
		Run:     []string{"--workers", "4", "--port", "8000", "--chdir", "/srv/app/current"},
		Command: []string{"/srv/app/venv/bin/uvicorn", "main:app", "--fd", "{fd}"},
		Paths:   []string{"/srv/app/current", "/etc/app.env"}, Written: []string{"/srv/app/current"},
		Limits:  deadlines.Settings{StartTimeout: 60 * time.Second, Settle: 2 * time.Second, DrainTimeout: 30 * time.Second},
		Workers: 4, Listeners: 1,
	}
}

// cases are what the files in testdata show, and systemd-analyze checks.
func cases() map[string]Settings {
	all := map[string]Settings{"typical": typical()}
	add := func(name string, change func(*Settings)) {
		s := typical()
		change(&s)
		all[name] = s
	}
	add("builtin", func(s *Settings) {
		s.Name, s.Run, s.Command, s.Paths = DefaultName, nil, nil, nil
	})
	add("reload", func(s *Settings) { s.NotifyReload = true })
	add("user", func(s *Settings) { s.UserManager = true })
	add("low-port", func(s *Settings) {
		s.RunAs, s.RunAsGroup, s.LowPort, s.Online = "www-data", "www-data", true, true
		s.Run = []string{"--listen", "10.0.0.1:80"}
	})
	add("dynamic", func(s *Settings) { s.DynamicUser = true })
	add("sockets", func(s *Settings) {
		s.Run = []string{"--workers", "4"}
		s.Listeners = 4
		s.Sockets = []Socket{{"web", TCP, "[::]:443"}, {"admin", TCP, "127.0.0.1:9000"}, {"six", TCP, "[::1]:80"}, {"local", Unix, "/run/app.sock"}}
	})
	add("limitless", func(s *Settings) {
		s.Limits = deadlines.Settings{StartTimeout: time.Minute, BeforeStart: true}
		s.Run = []string{"--drain-timeout", "0s", "--before-start", "echo \"100%\" of $HOME; ./migrate up\n"}
		s.NoFile = 1 << 20
		s.Control = "/run/my app/control.sock"
	})
	add("hidden", func(s *Settings) {
		s.Written = []string{"/tmp/app.sock", "/root/app", "/etc/app/data"}
		s.Workers = 64
	})
	return all
}

// TestFiles_Golden compares with testdata; UPDATE_GOLDEN=1 writes it.
func TestFiles_Golden(t *testing.T) {
	for name, s := range cases() {
		t.Run(name, func(t *testing.T) {
			files, err := Files(s)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			for _, f := range files {
				b.WriteString("-- " + f.Name + " --\n" + f.Text)
			}
			path := filepath.Join("testdata", name+".txt")
			if os.Getenv("UPDATE_GOLDEN") == "1" {
				if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil || b.String() != string(want) {
				t.Errorf("got\n%s\nwant (%v; UPDATE_GOLDEN=1 go test ./internal/unit writes it)\n%s", b.String(), err, want)
			}
		})
	}
}

func TestFiles_Refuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Settings)
		want   error
	}{
		{"a relative binary", func(s *Settings) { s.Binary = "gapless" }, ErrUnwritable},
		{"an argument that is no text", func(s *Settings) { s.Command = []string{"/bin/x", "\xff"} }, ErrUnwritable},
		{"a flag that is no text", func(s *Settings) { s.Run = []string{"--port", "\x00"} }, ErrUnwritable},
		{"a relative control socket", func(s *Settings) { s.Control = "control.sock" }, ErrBadSettings},
		{"a user with a line break", func(s *Settings) { s.RunAs = "a\nb" }, ErrUnwritable},
		{"a user below a user's manager", func(s *Settings) { s.UserManager, s.RunAs = true, "www-data" }, ErrBadSettings},
		{"a group alone", func(s *Settings) { s.RunAsGroup = "www-data" }, ErrBadSettings},
		{"a name with a slash", func(s *Settings) { s.Name = "../x" }, ErrBadSettings},
		{"a socket without a port", func(s *Settings) { s.Sockets = []Socket{{"web", TCP, "127.0.0.1:0"}} }, ErrBadSettings},
		{"a socket with a line break", func(s *Settings) { s.Sockets = []Socket{{"web", Unix, "/run/a\nb"}} }, ErrUnwritable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := typical()
			tt.change(&s)
			if files, err := Files(s); !errors.Is(err, tt.want) {
				t.Errorf("got %v, %v; want %v", files, err, tt.want)
			}
		})
	}
}

func TestCheckName(t *testing.T) {
	for name, want := range map[string]string{"app": "app", "app.service": "app", "my_app-2.x": "my_app-2.x"} {
		if got, err := CheckName(name); got != want || err != nil {
			t.Errorf("%q: got %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"", ".service", "a b", "-x", "a@b", "a/b", "ä", strings.Repeat("a", 101)} {
		if got, err := CheckName(name); !errors.Is(err, ErrBadSettings) {
			t.Errorf("%q: got %q, %v", name, got, err)
		}
	}
}
