package control

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestFolders(t *testing.T) {
	for _, tt := range []struct {
		name string
		uid  int
		env  map[string]string
		want []string
	}{
		{"a user's session", 1000, map[string]string{"XDG_RUNTIME_DIR": "/run/user/1000"}, []string{"/run/user/1000/gapless", "/tmp/gapless-1000"}},
		{"a user's cron job", 1000, nil, []string{"/tmp/gapless-1000", "/run/user/1000/gapless"}},
		{"TMPDIR", 1000, map[string]string{"TMPDIR": "/var/tmp"}, []string{"/var/tmp/gapless-1000", "/run/user/1000/gapless"}},
		{"relative folders", 1000, map[string]string{"TMPDIR": "tmp", "XDG_RUNTIME_DIR": "run"}, []string{"/tmp/gapless-1000", "/run/user/1000/gapless"}},
		{"a service of root", 0, nil, []string{"/run/gapless", "/run/user/0/gapless"}},
		{"one of its own", 0, map[string]string{"XDG_RUNTIME_DIR": "/run/user/0", "GAPLESS_RUNTIME_DIR": "/srv/run"}, []string{"/srv/run"}},
		{"a login of root", 0, map[string]string{"XDG_RUNTIME_DIR": "/run/user/0"}, []string{"/run/user/0/gapless", "/run/gapless"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Folders(tt.uid, func(key string) string { return tt.env[key] }); !slices.Equal(got, tt.want) {
				t.Errorf("Folders = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestDefaultPath(t *testing.T) {
	for _, tt := range []struct{ listener, want string }{
		{"127.0.0.1:8000", "127.0.0.1_8000.sock"},
		{"0.0.0.0:80", "0.0.0.0_80.sock"},
		{"[::]:443", "___443.sock"},
		{"[::1]:443", "__1_443.sock"},
		{"127.0.0.1:0", "127.0.0.1_0-77.sock"},
		{"unix:/run/app.sock", "unix-4755556e.sock"},
		{"unix:@app", "unix-916046ad.sock"},
		{"fd:web", "fd-2e0f1965.sock"},
		{"[fe80::1%eth0]:80", "fe80-c0a60f2e.sock"},
		{"", "at-e3b0c442.sock"},
		{"../../etc:80", "at-"},
		{strings.Repeat("a", 300) + ":80", "at-"},
	} {
		t.Run(tt.listener, func(t *testing.T) {
			got := DefaultPath("/run/gapless", tt.listener, 77)
			if dir := filepath.Dir(got); dir != "/run/gapless" {
				t.Errorf("the socket lies in %s", dir)
			}
			base := filepath.Base(got)
			if strings.HasSuffix(tt.want, ".sock") && base != tt.want || !strings.HasPrefix(base, tt.want[:3]) {
				t.Errorf("the socket is called %s, want %s", base, tt.want)
			}
		})
	}
	if DefaultPath("/f", "unix:/a/b", 1) == DefaultPath("/f", "unix:/a_b", 1) {
		t.Error("two socket files have one control socket")
	}
}
