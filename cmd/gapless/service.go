package main

import (
	"context"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"gapless/internal/unit"
)

// askLimit bounds what is asked of systemd beside the matter itself.
const askLimit = 3 * time.Second

// service is the unit of systemd that a gapless is the main process of.
type service struct {
	unit string
	user bool // of a user's own systemd
}

// serviceOf finds the unit of a parent whose control group has this text, and that systemd starts again after an end in
// order; ok is false if there is none, or if systemd does not say.
func serviceOf(ctx context.Context, parent int, group string, ask func(user bool) unit.Runner) (s service, ok bool) {
	for line := range strings.Lines(group) {
		id, name, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, name, _ := strings.Cut(name, ":")
		if id != "0" && controllers != "name=systemd" {
			continue
		}
		s.unit, s.user = path.Base(name), strings.Contains(name, "/user@")
	}
	if !strings.HasSuffix(s.unit, ".service") {
		return service{}, false
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	out, err := ask(s.user)(ctx, "show", "--property=MainPID,Restart", s.unit)
	if err != nil {
		return service{}, false
	}
	// A gapless that was started by a script of some service is in its control group as well, and is not what it is about.
	says := func(property string) bool {
		for line := range strings.Lines(out) {
			if strings.TrimSpace(line) == property {
				return true
			}
		}
		return false
	}
	if !says("MainPID="+strconv.Itoa(parent)) || !says("Restart=always") && !says("Restart=on-success") {
		return service{}, false
	}
	return s, true
}

// runningService is serviceOf for a process that runs.
func runningService(ctx context.Context, parent int) (service, bool) {
	group, err := os.ReadFile("/proc/" + strconv.Itoa(parent) + "/cgroup")
	if err != nil {
		return service{}, false
	}
	return serviceOf(ctx, parent, string(group), systemctl)
}

// stop is the command that stops it for good.
func (s service) stop() string { return "systemctl " + userFlag(s.user) + "stop " + s.unit }
