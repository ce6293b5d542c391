package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"gapless/internal/unit"

	"github.com/alecthomas/kong"
)

// installCmd is `gapless install`.
type installCmd struct {
	DryRun bool      `env:"-" verb:"" help:"Only say what would be done."`
	Unit   unitFlags `embed:""`
	Flags  runCmd    `embed:""`
}

// Help is shown after the flags.
func (installCmd) Help() string {
	return `Writes the unit that gapless unit prints, enables it, starts it, and waits until it serves. If that fails, everything is
as it was before. Exit status: 0 it serves; 1 it failed; 2 wrong usage.`
}

// Run installs.
func (c *installCmd) Run(r *result, kctx *kong.Context, stdout io.Writer) error {
	files, s, failed := c.Unit.files(&c.Flags, kctx.Selected())
	if failed != nil {
		*r = *failed
		return nil
	}
	return installing(r, "install", s.UserManager, c.DryRun, stdout, func(ctx context.Context, in *unit.Installer) (string, error) {
		done, err := in.Install(ctx, s.Name, files)
		switch {
		case err != nil:
			return "", err
		case done.Ran:
			return fmt.Sprintf("%s.service was replaced, and runs on with the flags that it had: systemctl %srestart %[1]s takes the new ones",
				s.Name, userFlag(s.UserManager)), nil
		case s.UserManager:
			return fmt.Sprintf("%s.service serves, and starts when you log in (loginctl enable-linger: with the machine); gapless status --control %s",
				s.Name, s.ControlPath()), nil
		}
		return fmt.Sprintf("%s.service serves, and starts with the machine; gapless status --control %s", s.Name, s.ControlPath()), nil
	})
}

// uninstallCmd is `gapless uninstall`.
type uninstallCmd struct {
	DryRun bool   `env:"-" help:"Only say what would be done."`
	Name   string `env:"-" default:"gapless" placeholder:"NAME" help:"The name of the unit."`
	User   bool   `env:"-" help:"From your own systemd, not the machine's."`
}

// Help is shown after the flags.
func (uninstallCmd) Help() string {
	return `Stops what gapless install has installed, waiting until it has drained, and removes it. Exit status: 0 it is gone; 1 it
failed, and is as it was.`
}

// Run uninstalls.
func (c *uninstallCmd) Run(r *result, stdout io.Writer) error {
	name, err := unit.CheckName(c.Name)
	if err != nil {
		*r = result{statusUsage, fmt.Errorf("--name: %w", err)}
		return nil
	}
	return installing(r, "uninstall", c.User, c.DryRun, stdout, func(ctx context.Context, in *unit.Installer) (string, error) {
		return name + ".service is gone", in.Uninstall(ctx, name)
	})
}

// installing does something with an Installer, and prints what came of it; with dryRun, what would be done.
func installing(r *result, verb string, user, dryRun bool, stdout io.Writer, do func(context.Context, *unit.Installer) (string, error)) error {
	folder, err := unitFolder(os.Geteuid(), user, dryRun, os.Getenv)
	if err == nil && !dryRun {
		_, err = exec.LookPath("systemctl")
		if err != nil {
			err = fmt.Errorf("%w: systemd does not run this machine; gapless unit prints the unit for one that it does", err)
		}
	}
	if err != nil {
		*r = result{statusFailed, fmt.Errorf("%s: %w", verb, err)}
		return nil
	}
	in := &unit.Installer{Folder: folder, Systemctl: systemctl(user), DryRun: dryRun}
	if dryRun {
		in.Step = func(text string) { fmt.Fprintln(stdout, text) }
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	answer, err := do(ctx, in)
	if err != nil {
		*r = result{statusFailed, fmt.Errorf("%s: %w", verb, err)}
		return nil
	}
	if !dryRun {
		_, err = fmt.Fprintln(stdout, answer)
	}
	return err
}

// unitFolder is where units of the machine's systemd go, or of the user's.
func unitFolder(euid int, user, dryRun bool, getenv func(string) string) (string, error) {
	if !user {
		if euid != 0 && !dryRun {
			return "", errors.New("the machine's units are root's: run it with sudo, or with --user for your own")
		}
		return "/etc/systemd/system", nil
	}
	config := getenv("XDG_CONFIG_HOME")
	if !filepath.IsAbs(config) {
		home := getenv("HOME")
		if !filepath.IsAbs(home) {
			return "", errors.New("HOME is not set, and so it is unknown where your units are: set it")
		}
		config = filepath.Join(home, ".config")
	}
	return filepath.Join(config, "systemd", "user"), nil
}

func userFlag(user bool) string {
	if user {
		return "--user "
	}
	return ""
}

// systemctl runs systemctl. That it has ended by a signal of ours does not end what it has asked systemd for.
func systemctl(user bool) unit.Runner {
	return func(ctx context.Context, args ...string) (string, error) {
		all := append([]string{"--no-ask-password", "--no-pager", "--quiet"}, args...)
		if user {
			all = append([]string{"--user"}, all...)
		}
		var out, messages strings.Builder
		cmd := exec.CommandContext(ctx, "systemctl", all...)
		cmd.Stdout, cmd.Stderr = &out, &messages
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for us to act on
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = 10 * time.Second
		err := cmd.Run()
		if err != nil {
			said := strings.Join(strings.Fields(printable(messages.String())), " ")
			err = fmt.Errorf("systemctl %s%s: %w", userFlag(user), strings.Join(args, " "), err)
			if said != "" {
				err = fmt.Errorf("%w: %s", err, said)
			}
		}
		return out.String(), err
	}
}
