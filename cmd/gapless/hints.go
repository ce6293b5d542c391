package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// foreignVerbs are what people type who know other servers and service managers.
var foreignVerbs = map[string]string{
	"start": "gapless run", "serve": "gapless run", "server": "gapless run", "up": "gapless run", "dev": "gapless run", "exec": "gapless run",
	"restart": "gapless upgrade (gapless and every worker) or gapless reload (the workers)",
	"deploy":  "gapless upgrade", "update": "gapless upgrade",
	"quit": "gapless stop", "shutdown": "gapless stop", "down": "gapless stop", "drain": "gapless stop",
	"kill": "gapless stop --now",
	"ps":   "gapless status", "list": "gapless status", "ls": "gapless status", "info": "gapless status", "workers": "gapless status", "top": "gapless status --watch",
	"test": "gapless check", "config": "gapless check", "check-config": "gapless check", "validate": "gapless check",
	"cancel": "gapless abort", "undo": "gapless rollback", "revert": "gapless rollback",
}

// foreignFlags are the flags of other servers, by what gapless calls them.
var foreignFlags = map[string]string{
	"-p": "--port PORT", "-b": "--listen ADDR", "--bind": "--listen ADDR", "--address": "--listen ADDR", "--addr": "--listen ADDR",
	"-H": "--host HOST", "--uds": "--listen unix:PATH", "--fd": "--listen fd:NAME", "--socket": "--listen unix:PATH",
	"-n": "--workers N", "--worker": "--workers N", "--processes": "--workers N", "--num-workers": "--workers N", "--instances": "--workers N", "-i": "--workers N",
	"-c": "--config FILE", "--conf": "--config FILE", "--settings": "--config FILE",
	"--pid": "--pid-file PATH", "--pidfile": "--pid-file PATH", "-u": "--user USER", "-g": "--group GROUP",
	"--app-dir": "--chdir DIR", "--cwd": "--chdir DIR", "--directory": "--chdir DIR", "-d": "--chdir DIR", "-C": "--chdir DIR",
	"--env": "--env-file PATH", "-e": "--env-file PATH", "--ulimit": "--nofile N",
	"--graceful-timeout": "--drain-timeout D", "--timeout-graceful-shutdown": "--drain-timeout D", "--stop-timeout": "--drain-timeout D",
	"--max-memory": "--max-worker-memory SIZE", "--memory-limit": "--max-worker-memory SIZE", "--max-rss": "--max-worker-memory SIZE",
	"--max-lifetime": "--max-worker-lifetime D", "--max-requests": "--max-worker-lifetime D, or --max-worker-memory SIZE",
	"--limit-max-requests": "--max-worker-lifetime D, or --max-worker-memory SIZE",
	"--timeout":            "--watchdog D for workers that hang, --drain-timeout D for those that drain, --start-timeout D for those that start",
	"--health-check":       "--health ADDR", "--healthcheck": "--health ADDR",
	"--log": "--log-level LEVEL", "--verbose": "--log-level debug", "-v": "--log-level debug", "--debug": "--log-level debug", "-q": "--log-level warn", "--quiet": "--log-level warn",
	"--pre-start": "--before-start CMD", "--hook": "--before-start CMD",
}

// foreignNotes are flags of other servers that have no counterpart.
var foreignNotes = map[string]string{
	"--reload":      "gapless does not watch files; run gapless reload when they have changed",
	"--watch":       "gapless does not watch files; run gapless reload when they have changed",
	"--daemon":      "gapless stays in the foreground; gapless install makes it a service",
	"-D":            "gapless stays in the foreground; gapless install makes it a service",
	"--daemonize":   "gapless stays in the foreground; gapless install makes it a service",
	"--background":  "gapless stays in the foreground; gapless install makes it a service",
	"--version":     "write gapless version",
	"--certfile":    "TLS is the worker's, or that of a proxy in front; leave it out",
	"--keyfile":     "TLS is the worker's, or that of a proxy in front; leave it out",
	"--ssl-keyfile": "TLS is the worker's: give it to the command, behind --", "--ssl-certfile": "TLS is the worker's: give it to the command, behind --",
}

// What kong says of what it does not know. It has no types for these errors; TestScripts would notice another wording.
var (
	unknownFlag     = regexp.MustCompile(`^unknown flag (-\S+?)(, did you mean .*)?$`)
	unknownArgument = regexp.MustCompile(`^unexpected argument (.*?)(, did you mean .*)?$`)
)

// usage makes one line of a mistake on the command line: what is wrong, and what to write.
func usage(parser *kong.Kong, args []string, err error) error {
	var wrong *kong.ParseError
	verb := ""
	if errors.As(err, &wrong) && wrong.Context != nil {
		if node := wrong.Context.Selected(); node != nil {
			verb = node.Name
		}
	}
	if m := unknownFlag.FindStringSubmatch(err.Error()); m != nil {
		if hint := flagHint(parser, verb, m[1], args); hint != "" {
			return fmt.Errorf("unknown flag %s: %s", m[1], hint)
		}
		if !strings.HasPrefix(m[1], "--") {
			err = fmt.Errorf("unknown flag %s", m[1]) // among the few letters that there are, kong finds each alike
		}
	}
	if m := unknownArgument.FindStringSubmatch(err.Error()); m != nil && verb == "" {
		if hint := verbHint(m[1], args); hint != "" {
			return fmt.Errorf("there is no verb %q: %s", m[1], hint)
		}
	}
	if verb != "" {
		verb = " " + verb
	}
	return fmt.Errorf("%w; see gapless%s --help", err, verb)
}

func flagHint(parser *kong.Kong, verb, flag string, args []string) string {
	flag, _, _ = strings.Cut(flag, "=")
	ofRun := node(parser, "run")
	has := slices.ContainsFunc(ofRun.Flags, func(f *kong.Flag) bool {
		return "--"+f.Name == flag || f.Short != 0 && "-"+string(f.Short) == flag
	})
	takesRun := slices.Contains([]string{"run", "check", "unit", "install", "verify"}, verb)
	switch name, note := foreignFlags[flag], foreignNotes[flag]; {
	case has && verb == "":
		return "the verb is missing; write gapless run " + strings.Join(args, " ")
	case flag == "--preview" && !takesRun:
		return "it is one of gapless run, where it holds for every upgrade, and of gapless upgrade --stage, where it holds for that one"
	case flag == "--after-promote" && !takesRun:
		return fmt.Sprintf("it is one of gapless run, and holds for every upgrade; give %s there, or in its configuration file", flag)
	case has && !takesRun:
		return fmt.Sprintf("it is one of gapless run; what runs keeps its flags, and each upgrade and reload reads its configuration file anew; leave it out of gapless %s", verb)
	case note != "" && (takesRun || verb == ""):
		return note
	case name != "" && takesRun:
		return "did you mean " + name + "?"
	case name != "" && verb == "":
		return "did you mean gapless run " + name + "?"
	case (flag == "-p" || flag == "-b" || flag == "--bind") && verb != "":
		return "did you mean --port PORT or --listen ADDR?"
	case slices.Contains([]string{"-f", "--force"}, flag) && verb == "stop":
		return "did you mean --now?"
	}
	return ""
}

func verbHint(arg string, args []string) string {
	if name, ok := foreignVerbs[strings.ToLower(arg)]; ok {
		return "did you mean " + name + "?"
	}
	if slices.Contains([]string{".py", ".js", ".mjs", ".cjs"}, filepath.Ext(arg)) || strings.ContainsAny(arg, "/:") {
		return "write gapless run " + strings.Join(args, " ")
	}
	return ""
}

// node is a verb of the grammar.
func node(parser *kong.Kong, verb string) *kong.Node {
	for _, n := range parser.Model.Children {
		if n.Name == verb {
			return n
		}
	}
	return &kong.Node{}
}

// asVerbs reads the two things that every program is asked by a flag or a verb, as people may: `gapless help [VERB]` and
// `gapless --version`.
func asVerbs(args []string) []string {
	if len(args) == 0 {
		return args
	}
	switch args[0] {
	case "help":
		return append(slices.Clone(args[1:]), "--help")
	case "--version", "-V", "-v":
		if len(args) == 1 {
			return []string{"version"}
		}
	}
	return args
}
