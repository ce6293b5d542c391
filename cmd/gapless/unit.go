package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"gapless/internal/deadlines"
	"gapless/internal/unit"
	"gapless/lifecycle"
	"gapless/upgrade"

	"github.com/alecthomas/kong"
)

// unitFlags are what a unit has beside the flags of run. They are of this command line alone: neither the environment nor
// the configuration file says them.
type unitFlags struct {
	Name         string `env:"-" verb:"" default:"gapless" placeholder:"NAME" help:"The name of the unit."`
	Socket       bool   `env:"-" verb:"" help:"Let systemd open the sockets: what comes while gapless does not run waits in them."`
	NotifyReload bool   `env:"-" verb:"" help:"systemctl reload as a signal that systemd waits for; from systemd 253 on."`
	UserManager  bool   `env:"-" verb:"" help:"For your own systemd, not the machine's; a --user without a name says the same."`
	RunAs        string `env:"-" verb:"" placeholder:"USER[:GROUP]" help:"Who gapless itself runs as; default: root, or you."`
	DynamicUser  bool   `env:"-" verb:"" help:"Let systemd make up a user for it."`
}

// unitCmd is `gapless unit`.
type unitCmd struct {
	Unit  unitFlags `embed:""`
	Flags runCmd    `embed:""`
}

// Help is shown after the flags.
func (unitCmd) Help() string {
	return `Prints a systemd unit for a gapless with these flags of run. What the environment says stands in it too, and paths are
absolute; what the configuration file says stays there. Example: gapless unit -w 4 --port 8000 -- uvicorn main:app --fd {fd}`
}

// Run prints.
func (c *unitCmd) Run(r *result, kctx *kong.Context, stdout io.Writer) error {
	files, _, failed := c.Unit.files(&c.Flags, kctx.Selected())
	if failed != nil {
		*r = *failed
		return nil
	}
	for i, f := range files {
		if len(files) > 1 {
			if i > 0 {
				fmt.Fprintln(stdout)
			}
			fmt.Fprintf(stdout, "# %s\n", f.Name)
		}
		if _, err := io.WriteString(stdout, f.Text); err != nil {
			return err
		}
	}
	return nil
}

// files makes the units.
func (u *unitFlags) files(c *runCmd, node *kong.Node) ([]unit.File, unit.Settings, *result) {
	usage := func(err error) ([]unit.File, unit.Settings, *result) {
		return nil, unit.Settings{}, &result{statusUsage, err}
	}
	s, err := u.settings(c, node)
	if errors.Is(err, exec.ErrNotFound) { // it is written well, and not here
		return nil, unit.Settings{}, &result{statusFailed, err}
	}
	if err != nil {
		return usage(c.explain(err))
	}
	files, err := unit.Files(s)
	if err != nil {
		return usage(err)
	}
	return files, s, nil
}

func (u *unitFlags) settings(c *runCmd, node *kong.Node) (unit.Settings, error) {
	var s unit.Settings
	if c.User == bareUser {
		u.UserManager, c.User = true, ""
		c.settings.origins["user"] = origin{byDefault, "default"}
	}
	cfg, err := c.config()
	if err != nil {
		return s, err
	}
	if c.User != "" && (u.UserManager || u.RunAs != "" || u.DynamicUser) {
		return s, fmt.Errorf("--user: only root may give its workers another user (%s): leave it, or --run-as, --dynamic-user and --user-manager out", c.User)
	}
	if s.Name, err = unit.CheckName(u.Name); err != nil {
		return s, fmt.Errorf("--name: %w", err)
	}
	if s.Binary, err = ownPath(); err != nil {
		return s, err
	}
	s.UserManager, s.DynamicUser, s.NotifyReload = u.UserManager, u.DynamicUser, u.NotifyReload
	s.RunAs, s.RunAsGroup, _ = strings.Cut(u.RunAs, ":")
	s.Workers, s.Listeners, s.NoFile = cfg.Workers, len(cfg.Addresses), cfg.NoFile
	s.Limits = limitsOf(cfg, node)
	if s.Control, err = c.absolute("control", c.Control); err != nil {
		return s, err
	}
	if u.Socket {
		if s.Sockets, err = socketsOf(cfg.Addresses); err != nil {
			return s, err
		}
	} else {
		s.LowPort, s.Online = portsOf(cfg.Addresses)
	}
	if s.Run, err = c.words(node, u.Socket); err != nil {
		return s, err
	}
	if s.Command, err = command(cfg); err != nil {
		return s, err
	}
	if (len(s.Command) > 0 || len(c.BeforeStart)+len(c.AfterPromote) > 0) && c.Chdir == "" { // what the command means is often where it is
		if c.Chdir, err = filepath.Abs("."); err != nil {
			return s, fmt.Errorf("--chdir: the current directory is unknown (%w): name one", err)
		}
		s.Run = append(s.Run, "--chdir", c.Chdir)
	}
	s.Paths, s.Written = c.paths(node, cfg)
	return s, nil
}

// words are the arguments of run for what the command line and the environment say.
func (c *runCmd) words(node *kong.Node, sockets bool) ([]string, error) {
	var words []string
	for _, flag := range runFlags(node) {
		o := c.settings.origins[flag.Name]
		var values []string
		switch v := flag.Target.Interface().(type) {
		case []string:
			values = v
		case time.Duration:
			values = []string{deadlines.Text(v)}
		case *int:
			if v != nil {
				values = []string{fmt.Sprint(*v)}
			}
		case string:
			if v != "" {
				values = []string{v}
			}
		default:
			values = []string{fmt.Sprint(v)}
		}
		for _, value := range values {
			if isPath(flag) && flag.Name != "control" {
				var err error
				if value, err = c.absolute(flag.Name, value); err != nil {
					return nil, err
				}
			}
			if flag.Name == "listen" {
				value = absoluteListen(value)
			}
			switch {
			case o.rank <= byFile && (o.rank == byFile || o.text == "default"),
				flag.Name == "control", // the unit has its own
				sockets && slices.Contains([]string{"listen", "host", "port"}, flag.Name):
			case flag.IsBool() && value == "true":
				words = append(words, "--"+flag.Name)
			case flag.IsBool() || strings.HasPrefix(value, "-"):
				words = append(words, "--"+flag.Name+"="+value)
			default:
				words = append(words, "--"+flag.Name, value)
			}
		}
	}
	return words, nil
}

// absolute makes a path absolute, with the symbolic links left in it, unless a file says it: there it would still be
// relative, to what a service has as its current directory.
func (c *runCmd) absolute(name, path string) (string, error) {
	if path == "" || filepath.IsAbs(path) {
		return path, nil
	}
	if o := c.settings.origins[name]; o.rank == byFile {
		return "", fmt.Errorf("--%s: %q would lead elsewhere in a service: write an absolute path", name, path)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("--%s: %q: %w; write an absolute path", name, path, err)
	}
	return abs, nil
}

// absoluteListen makes the path of a socket file absolute.
func absoluteListen(text string) string {
	a, err := upgrade.ParseAddress(text)
	if err != nil || a.Network != upgrade.NetworkUnix {
		return text
	}
	if a.Name != "" {
		return a.Name + "=" + a.String()
	}
	return a.String()
}

// isPath tells the flags whose values are paths.
func isPath(flag *kong.Flag) bool {
	return slices.Contains([]string{"PATH", "DIR", "FILE"}, flag.PlaceHolder)
}

// command is COMMAND with the program's absolute path: a service has another PATH. A path that leads from --chdir is left,
// as it leads to another release after each deploy.
func command(cfg lifecycle.Config) ([]string, error) {
	if len(cfg.Command) == 0 {
		return nil, nil
	}
	words := slices.Clone(cfg.Command)
	if strings.Contains(words[0], "/") {
		return words, nil
	}
	path, err := exec.LookPath(words[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return nil, fmt.Errorf("COMMAND: %w; write its absolute path, as a service has another PATH", err)
	}
	words[0], err = filepath.Abs(path)
	return words, err
}

// paths are the files and folders that the settings name, and those of them that may be written to.
func (c *runCmd) paths(node *kong.Node, cfg lifecycle.Config) (all, written []string) {
	for _, flag := range runFlags(node) {
		if !isPath(flag) {
			continue
		}
		switch v := flag.Target.Interface().(type) {
		case string:
			if v != "" {
				all = append(all, v)
			}
		case []string:
			all = append(all, v...)
		}
	}
	written = []string{c.Chdir, c.PIDFile, c.Control}
	for _, a := range cfg.Addresses {
		if a.Network == upgrade.NetworkUnix && !strings.HasPrefix(a.Addr, "@") {
			written = append(written, a.Addr)
		}
	}
	for _, arg := range slices.Concat(cfg.Command, c.BeforeStart, c.AfterPromote) { // --bind unix:/tmp/x.sock
		if i := strings.Index(arg, "/"); i >= 0 {
			all = append(all, arg[i:])
		}
	}
	none := func(p string) bool { return p == "" }
	return slices.DeleteFunc(all, none), slices.DeleteFunc(written, none)
}

func socketsOf(addrs []upgrade.Address) ([]unit.Socket, error) {
	var sockets []unit.Socket
	for _, a := range addrs {
		kind := map[string]string{upgrade.NetworkTCP: unit.TCP, upgrade.NetworkUnix: unit.Unix}[a.Network]
		if kind == "" {
			return nil, fmt.Errorf("--listen: %s: systemd opens it already: leave --socket out, or write the address", a)
		}
		sockets = append(sockets, unit.Socket{Name: a.Name, Network: kind, Addr: a.Addr})
	}
	return sockets, nil
}

func portsOf(addrs []upgrade.Address) (low, online bool) {
	for _, a := range addrs {
		if ap, err := netip.ParseAddrPort(a.Addr); err == nil && a.Network == upgrade.NetworkTCP {
			low = low || ap.Port() > 0 && ap.Port() < 1024
			online = online || !ap.Addr().IsUnspecified() && !ap.Addr().IsLoopback()
		}
	}
	return low, online
}

// limitsOf are the settings that have to do with time.
func limitsOf(cfg lifecycle.Config, node *kong.Node) deadlines.Settings {
	s := deadlines.Settings{
		BeforeStart: len(cfg.BeforeStart) > 0, BeforeStartTimeout: cfg.BeforeStartTimeout, StartTimeout: cfg.StartTimeout,
		Settle: cfg.Settle, DrainTimeout: cfg.DrainTimeout, DrainExtra: cfg.DrainExtra, CloseSpread: cfg.CloseSpread,
	}
	for _, a := range cfg.Addresses {
		if a.Network == upgrade.NetworkTCP {
			s.Listen = append(s.Listen, a.String())
		}
	}
	for _, flag := range node.Flags {
		switch v := flag.Target.Interface().(type) {
		case time.Duration:
			if flag.Name == "lame-duck" {
				s.LameDuck = v
			}
		case string:
			if flag.Name == "health" {
				s.Health = v
			}
		}
	}
	return s
}

// runFlags are the flags of a verb that are those of run.
func runFlags(node *kong.Node) []*kong.Flag {
	return slices.DeleteFunc(slices.Clone(node.Flags), func(f *kong.Flag) bool { return f.Name == "help" || f.Tag.Has("verb") })
}

// bareUser is what --user holds when it has no value. No user is named so.
const bareUser = "--"

// decodeUser reads --user: a name, or nothing, which `unit` and `install` take for "my own systemd", as systemctl does.
func decodeUser(ctx *kong.DecodeContext, target reflect.Value) error {
	name := bareUser
	if ctx.Scan.Peek().IsValue() {
		if err := ctx.Scan.PopValueInto("user", &name); err != nil {
			return err
		}
	}
	target.SetString(name)
	return nil
}
