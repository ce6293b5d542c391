package main

import (
	"context"
	"errors"
	"testing"

	"gapless/internal/unit"
)

func TestServiceOf(t *testing.T) {
	for _, tc := range []struct {
		name, group, says string
		fails             error
		want              string // the command that stops it; "": nothing starts it again
	}{
		{"the machine's", "0::/system.slice/app.service\n", "Restart=always\nMainPID=7\n", nil, "systemctl stop app.service"},
		{"a user's", "0::/user.slice/user-4711.slice/user@4711.service/app.slice/mine.service\n", "MainPID=7\nRestart=on-success\n", nil, "systemctl --user stop mine.service"},
		{"control groups of version 1", "9:memory:/x\n1:name=systemd:/system.slice/app.service\n", "MainPID=7\nRestart=always\n", nil, "systemctl stop app.service"},
		{"not started again", "0::/system.slice/app.service\n", "MainPID=7\nRestart=on-failure\n", nil, ""},
		{"below another service", "0::/system.slice/cron.service\n", "MainPID=77\nRestart=always\n", nil, ""},
		{"from a terminal", "0::/user.slice/user-0.slice/session-1.scope\n", "MainPID=7\nRestart=always\n", nil, ""},
		{"in a container", "0::/\n", "MainPID=7\nRestart=always\n", nil, ""},
		{"no systemd", "0::/system.slice/app.service\n", "", errors.New("no systemctl"), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, ok := serviceOf(t.Context(), 7, tc.group, func(bool) unit.Runner {
				return func(context.Context, ...string) (string, error) { return tc.says, tc.fails }
			})
			got := ""
			if ok {
				got = s.stop()
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
