// Package unit writes systemd units for `gapless run`, and installs them. The writing is pure: settings in, text out.
//
// Invariants: a unit is written so that
//   - the process gets the very arguments that Settings name, whatever characters they hold;
//   - systemd never ends a start, a reload or a stop that gapless would still end by itself (see package deadlines);
//   - systemd tells only the parent of a stop, and the parent tells the others in order;
//   - nothing depends on a current directory: gapless runs in systemd's, and a release can be removed under it;
//   - no directive takes away what gapless needs: signals through pidfds, /proc of its workers, netlink, the capability to
//     open a port below 1024.
package unit

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"gapless/internal/deadlines"
)

// The defaults of what no flag says.
const (
	// DefaultName is the name of the unit.
	DefaultName = "gapless"
	// watchdog is how long systemd waits for a sign of health. It is long against a worker's restart and a master's
	// replacement, as the cure is the end of everything.
	watchdog = 60 * time.Second
	// abort is how long the parent has to print where its goroutines are after systemd's watchdog has bitten.
	abort = 10 * time.Second
	// openFiles is systemd's own default of the hard limit, said again for systems that lower it.
	openFiles = 524288
	// storedAtLeast is the least room for descriptors in systemd's store.
	storedAtLeast = 256
)

// Settings are what a unit is made of.
type Settings struct {
	// Name is that of the unit, without ".service".
	Name string
	// Binary is the absolute path of gapless. Symbolic links stay in it, so that an upgrade takes what they lead to then.
	Binary string
	// Run are the arguments after `gapless run`, without --control and without the flags that Sockets replace.
	Run []string
	// Command follows Run after "--"; none for the built-in app.
	Command []string
	// Control is the path of the control socket; "": one that the unit makes room for.
	Control string

	// UserManager makes it a unit of a user's own manager.
	UserManager bool
	// RunAs and RunAsGroup are who gapless itself runs as; "": root, or the manager's user.
	RunAs, RunAsGroup string
	// DynamicUser lets systemd make up a user.
	DynamicUser bool
	// NotifyReload makes `systemctl reload` a signal (systemd 253 and later) instead of a command.
	NotifyReload bool
	// Sockets are those that systemd opens; the others gapless opens.
	Sockets []Socket

	Limits  deadlines.Settings
	Workers int
	// Listeners are how many addresses there are.
	Listeners int
	// NoFile is --nofile; 0: none.
	NoFile uint64
	// LowPort tells that gapless opens a port below 1024.
	LowPort bool
	// Online tells that an address is only there when the network is.
	Online bool
	// Paths are all files and folders that the settings name, and Written those of them in which gapless or its workers
	// may write. No directive hides the former or protects the latter.
	Paths, Written []string
}

// ErrBadSettings is what the errors of settings match that contradict each other.
var ErrBadSettings = errors.New("cannot make a unit")

// CheckName returns the name of a unit without ".service", if it is one that needs no escaping.
func CheckName(name string) (string, error) {
	name = strings.TrimSuffix(name, ".service")
	// Here and not at every start of gapless, of which workers are many.
	if !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$`).MatchString(name) {
		return "", fmt.Errorf("%w: %q is no name of a unit: write letters, digits, '-', '_' and '.'", ErrBadSettings, name)
	}
	return name, nil
}

func (s *Settings) check() error {
	if _, err := CheckName(s.Name); err != nil {
		return err
	}
	own := s.RunAs != "" || s.DynamicUser
	switch {
	case s.UserManager && own:
		return fmt.Errorf("%w: a user's manager runs everything as that user: leave --run-as and --dynamic-user out", ErrBadSettings)
	case s.RunAsGroup != "" && s.RunAs == "":
		return fmt.Errorf("%w: a group without a user", ErrBadSettings)
	}
	if s.Control != "" && !filepath.IsAbs(s.Control) {
		return fmt.Errorf("%w: %q: give its absolute path", ErrBadSettings, s.Control)
	}
	return nil
}

// runtimeDirectory is the folder below /run (or the user's) that systemd makes for the control socket. That of root is
// the one in which `gapless status` looks; gapless would refuse it if it belonged to another user.
func (s *Settings) runtimeDirectory() string {
	if s.RunAs != "" || s.DynamicUser {
		return "gapless-" + s.Name
	}
	return "gapless"
}

// ControlPath is where the control socket of the unit lies, for people.
func (s *Settings) ControlPath() string {
	switch {
	case s.Control != "":
		return s.Control
	case s.UserManager:
		return "$XDG_RUNTIME_DIR/gapless/" + s.Name + ".sock"
	}
	return "/run/" + s.runtimeDirectory() + "/" + s.Name + ".sock"
}

func (s *Settings) controlWord() string {
	if s.Control != "" {
		return quoteArgument(s.Control)
	}
	return "%t/" + s.runtimeDirectory() + "/" + s.Name + ".sock" // %t: /run, or the user's runtime folder
}

// Service returns the text of the service unit.
func Service(s Settings) (string, error) {
	if err := s.check(); err != nil {
		return "", err
	}
	start, err := s.execStart()
	if err != nil {
		return "", err
	}
	program, err := quoteProgram(s.Binary)
	if err != nil {
		return "", err
	}
	var w writer
	w.section("Unit")
	w.set("Description", s.Name+", run by gapless")
	switch {
	case s.UserManager: // it knows no network targets
	case s.Online:
		w.set("Wants", "network-online.target")
		w.set("After", "network-online.target")
	default:
		w.set("After", "network.target")
	}
	w.comment("A server is to come back however often it has failed; see RestartSec= below.")
	w.set("StartLimitIntervalSec", "0")

	w.section("Service")
	if s.NotifyReload {
		w.comment("systemctl reload sends this signal, and waits until gapless says that the upgrade is over.")
		w.set("Type", "notify-reload")
		w.set("ReloadSignal", "SIGUSR2")
	} else {
		w.set("Type", "notify")
	}
	w.set("NotifyAccess", "main")
	w.raw(execLine("ExecStart", start))
	if !s.NotifyReload {
		w.comment("Waits for the outcome: systemctl reload fails if the upgrade was aborted, and the old release serves on.")
		w.raw(execLine("ExecReload", []string{program, "upgrade", "--control", s.controlWord()}))
	}
	if len(s.Sockets) > 0 {
		w.set("Sockets", strings.Join(s.socketUnits(), " "))
	}
	if err := s.writeUser(&w); err != nil {
		return "", err
	}
	w.comment("The control socket's. Kept over restarts: other instances may have their sockets in it.")
	w.set("RuntimeDirectory", s.runtimeDirectory())
	w.set("RuntimeDirectoryMode", "0700")
	w.set("RuntimeDirectoryPreserve", "yes")

	s.writeLimits(&w)
	s.writeHardening(&w)

	w.section("Install")
	if s.UserManager {
		w.set("WantedBy", "default.target")
	} else {
		w.set("WantedBy", "multi-user.target")
	}
	if len(s.Sockets) > 0 {
		w.set("Also", strings.Join(s.socketUnits(), " "))
	}
	return w.String(), nil
}

func (s *Settings) execStart() ([]string, error) {
	program, err := quoteProgram(s.Binary)
	if err != nil {
		return nil, err
	}
	words := []string{program, "run"}
	plain := slices.Clone(s.Run)
	for _, sock := range s.Sockets {
		plain = append(plain, "--listen", sock.Name+"=fd:"+sock.Name)
	}
	for _, arg := range plain {
		if err := checkText("the argument", arg); err != nil {
			return nil, err
		}
		words = append(words, quoteArgument(arg))
	}
	words = append(words, "--control", s.controlWord())
	if len(s.Command) == 0 {
		return words, nil
	}
	words = append(words, "--")
	for _, arg := range s.Command {
		if err := checkText("the argument", arg); err != nil {
			return nil, err
		}
		words = append(words, quoteArgument(arg))
	}
	return words, nil
}

func (s *Settings) writeUser(w *writer) error {
	if s.DynamicUser {
		w.set("DynamicUser", "yes")
	}
	for _, u := range []struct{ key, name string }{{"User", s.RunAs}, {"Group", s.RunAsGroup}} {
		if u.name == "" {
			continue
		}
		name, err := value("the name", u.name)
		if err != nil {
			return err
		}
		w.set(u.key, name)
	}
	return nil
}

// writeLimits writes what says when systemd acts.
func (s *Settings) writeLimits(w *writer) {
	w.gap()
	w.comment("Longer than what gapless may take by its own flags; print the unit anew when you change them.")
	w.set("TimeoutStartSec", seconds(s.Limits.StartLimit()))
	w.set("TimeoutStopSec", seconds(s.Limits.StopLimit()))
	w.set("TimeoutAbortSec", seconds(abort, true))
	w.comment("systemd is told that gapless is alive only while its workers serve.")
	w.set("WatchdogSec", seconds(watchdog, true))
	w.comment("A stop is told to the parent alone, which drains workers in order; what is left after the limit is killed.")
	w.set("KillMode", "mixed")
	w.set("Restart", "always")
	w.set("RestartSec", "1s")
	w.comment("A worker that ran out of memory is replaced by gapless; by default systemd would end them all.")
	w.set("OOMPolicy", "continue")
	w.comment("The listening sockets outlive a killed gapless here, with what is queued on them.")
	stored := fmt.Sprint(max(storedAtLeast, 8*s.Workers*max(1, s.Listeners)))
	w.set("FileDescriptorStoreMax", stored)
	w.comment("How gapless learns of that; systemd says it by itself from version 254 on.")
	w.set("Environment", "FDSTORE="+stored)
	w.set("LimitNOFILE", fmt.Sprint(max(openFiles, s.NoFile)))
}

// seconds writes a limit, rounded up.
func seconds(limit time.Duration, ok bool) string {
	if !ok {
		return "infinity"
	}
	return fmt.Sprintf("%ds", int64((limit+time.Second-1)/time.Second))
}

// writer puts a unit file together.
type writer struct{ strings.Builder }

func (w *writer) section(name string) {
	w.gap()
	w.WriteString("[" + name + "]\n")
}

func (w *writer) gap() {
	if w.Len() > 0 {
		w.WriteByte('\n')
	}
}
func (w *writer) comment(text string)   { w.WriteString("# " + text + "\n") }
func (w *writer) set(key, value string) { w.WriteString(key + "=" + value + "\n") }
func (w *writer) raw(text string)       { w.WriteString(text) }
