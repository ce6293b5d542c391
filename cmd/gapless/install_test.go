package main

import "testing"

func TestUnitFolder(t *testing.T) {
	for _, tt := range []struct {
		name         string
		euid         int
		user, dryRun bool
		env          map[string]string
		want, err    string
	}{
		{"root", 0, false, false, nil, "/etc/systemd/system", ""},
		{"not root", 1000, false, false, nil, "", "the machine's units are root's: run it with sudo, or with --user for your own"},
		{"not root, and only looking", 1000, false, true, nil, "/etc/systemd/system", ""},
		{"a user", 1000, true, false, map[string]string{"HOME": "/home/me"}, "/home/me/.config/systemd/user", ""},
		{"a user with a folder for settings", 1000, true, false, map[string]string{"HOME": "/home/me", "XDG_CONFIG_HOME": "/cfg"}, "/cfg/systemd/user", ""},
		{"a user without a home", 1000, true, false, nil, "", "HOME is not set, and so it is unknown where your units are: set it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := unitFolder(tt.euid, tt.user, tt.dryRun, func(k string) string { return tt.env[k] })
			text := ""
			if err != nil {
				text = err.Error()
			}
			if got != tt.want || text != tt.err {
				t.Errorf("got %q, %q", got, text)
			}
		})
	}
}
