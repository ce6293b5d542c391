package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"gapless/internal/configfile"
	"gapless/internal/deadlines"
	"gapless/lifecycle"

	"github.com/alecthomas/kong"
)

// The names of settings that are not like the others.
const (
	configFlag     = "config"  // says where the file is, and so cannot stand in it
	commandSetting = "command" // stands in the file, and on the command line is no flag
)

// rank orders where settings come from; the greater one wins.
type rank int

const (
	byDefault rank = iota
	byFile
	byEnv
	byFlag
)

// origin is where a setting comes from.
type origin struct {
	rank rank
	text string // for people: "--port", "GAPLESS_PORT", "gapless.yaml:3", "default"
}

// settings are what `gapless run` knows beside its flags.
type settings struct {
	file    *configfile.File // nil: none
	origins map[string]origin
}

// BeforeResolve reads the configuration file, once it is known which: kong asks its resolver for flags that the command
// line does not set.
func (c *runCmd) BeforeResolve(kctx *kong.Context) error {
	node := kctx.Selected()
	i := slices.IndexFunc(node.Flags, func(f *kong.Flag) bool { return f.Name == configFlag })
	path, _ := kctx.FlagValue(node.Flags[i]).(string)
	if path == "" {
		return nil
	}
	file, err := configfile.Load(path, keys(node))
	if err != nil {
		return err
	}
	c.settings.file = file
	kctx.AddResolver(kong.ResolverFunc(func(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
		s, ok := file.Settings[flag.Name]
		// kong would prefer the file to the environment.
		if _, set := envOf(flag, true); !ok || set {
			return nil, nil //nolint:nilnil // so kong says "not here"
		}
		if flag.Target.Kind() != reflect.Slice {
			return s.Values[0], nil
		}
		list := make([]any, len(s.Values))
		for i, v := range s.Values {
			list[i] = v
		}
		return list, nil
	}))
	return nil
}

// AfterApply notes where each setting comes from, and settles what several places say.
func (c *runCmd) AfterApply(kctx *kong.Context) error {
	node := kctx.Selected()
	c.settings.origins = make(map[string]origin)
	for _, flag := range node.Flags {
		c.settings.origins[flag.Name] = c.origin(kctx, flag)
	}
	c.settings.origins[commandSetting] = origin{byDefault, "default"}
	if len(c.Command) > 0 {
		c.settings.origins[commandSetting] = origin{byFlag, "command line"}
	} else if s, ok := c.fromFile(commandSetting); ok {
		c.Command = s.Values
		c.settings.origins[commandSetting] = c.inFile(s)
	}
	// --listen and --host with --port are two ways to say one thing, so the one that is said with more weight wins.
	short := max(c.settings.origins["host"].rank, c.settings.origins["port"].rank)
	listen := c.settings.origins["listen"].rank
	switch overruled := (origin{byDefault, "default"}); {
	case listen > short:
		c.Host, c.Port = "", nil
		c.settings.origins["host"], c.settings.origins["port"] = overruled, overruled
	case short > listen:
		c.Listen = nil
		c.settings.origins["listen"] = overruled
	}
	return nil
}

func (c *runCmd) origin(kctx *kong.Context, flag *kong.Flag) origin {
	for _, p := range kctx.Path {
		if p.Flag == flag && !p.Resolved {
			return origin{byFlag, "--" + flag.Name}
		}
	}
	if name, ok := envOf(flag, true); ok {
		return origin{byEnv, name}
	}
	if s, ok := c.fromFile(flag.Name); ok {
		return c.inFile(s)
	}
	if name, ok := envOf(flag, false); ok {
		return origin{byDefault, name}
	}
	return origin{byDefault, "default"}
}

// envOf returns the variable that sets a flag. Those of other programs, such as WEB_CONCURRENCY, only change a default.
func envOf(flag *kong.Flag, own bool) (name string, ok bool) {
	for _, name := range flag.Envs {
		if _, set := os.LookupEnv(name); set && strings.HasPrefix(name, "GAPLESS_") == own {
			return name, true
		}
	}
	return "", false
}

func (c *runCmd) fromFile(name string) (configfile.Setting, bool) {
	if c.settings.file == nil {
		return configfile.Setting{}, false
	}
	s, ok := c.settings.file.Settings[name]
	return s, ok
}

func (c *runCmd) inFile(s configfile.Setting) origin {
	return origin{byFile, fmt.Sprintf("%s:%d", c.settings.file.Path, s.Line)}
}

// keys are the settings that a file may hold.
func keys(node *kong.Node) map[string]configfile.Key {
	all := map[string]configfile.Key{commandSetting: {Kind: configfile.List}}
	for _, flag := range runFlags(node) {
		if flag.Name != configFlag {
			all[flag.Name] = configfile.Key{Kind: kindOf(flag.Target.Type()), Choices: choices(flag)}
		}
	}
	return all
}

func choices(flag *kong.Flag) []string {
	if flag.Enum == "" {
		return nil
	}
	return flag.EnumSlice()
}

func kindOf(t reflect.Type) configfile.Kind {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return configfile.Duration
	case t.Kind() == reflect.Bool:
		return configfile.Switch
	case t.Kind() == reflect.Slice:
		return configfile.List
	case t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64:
		return configfile.Integer
	}
	return configfile.Text
}

// named finds the flag at the beginning of an error.
var named = regexp.MustCompile(`^--([a-z-]+)(?: [^:]*)?: `)

// explain says where the setting that an error names comes from, if not from the command line.
func (c *runCmd) explain(err error) error {
	if err == nil {
		return nil
	}
	if m := named.FindStringSubmatch(err.Error()); m != nil {
		if o := c.settings.origins[m[1]]; o.rank == byFile || o.rank == byEnv {
			return fmt.Errorf("%w (%s)", err, o.text)
		}
	}
	return err
}

// reread reads what a reload is to take up: the configuration file and the files that the flags name are read again; the
// flags themselves and the environment are as they are.
func (c *runCmd) reread() (lifecycle.Config, error) {
	again := c
	if c.settings.file != nil {
		var fresh cli
		parser, err := newParser(&fresh, io.Discard, io.Discard, func(int) {})
		if err == nil {
			_, err = parser.Parse(os.Args[1:])
		}
		if err != nil {
			return lifecycle.Config{}, err
		}
		again = &fresh.Run
	}
	cfg, err := again.config()
	return cfg, again.explain(err)
}

// effective is a configuration file that means the same, with a comment at each setting that says where it comes from.
func (c *runCmd) effective(node *kong.Node) string {
	type entry struct{ setting, from string }
	var entries []entry
	width := 0
	add := func(name, value, from string) {
		e := entry{name + ": " + value, from}
		if value == "" {
			e.setting = "# " + name + ":"
		}
		width = max(width, len(e.setting))
		entries = append(entries, e)
	}
	for _, flag := range runFlags(node) {
		if flag.Name == configFlag {
			continue
		}
		value := yamlOf(flag.Target)
		if len(c.Listen) == 0 { // they have defaults that no flag shows
			switch {
			case flag.Name == "host" && c.Host == "":
				value = defaultHost
			case flag.Name == "port" && c.Port == nil:
				value = fmt.Sprint(defaultPort)
			}
		}
		add(flag.Name, value, c.settings.origins[flag.Name].text)
	}
	command := c.Command
	if len(command) > 0 && command[0] == "--" {
		command = command[1:]
	}
	add(commandSetting, yamlOf(reflect.ValueOf(command)), c.settings.origins[commandSetting].text)
	var b strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&b, "%-*s  # %s\n", min(width, 40), e.setting, e.from)
	}
	return b.String()
}

// plain are texts that mean themselves in YAML without quotes.
var plain = regexp.MustCompile(`^([A-Za-z/][A-Za-z0-9_./=-]*|[0-9]+)$`)

// yamlOf writes a value as YAML; "" if it is not set.
func yamlOf(v reflect.Value) string {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return ""
		}
		v = v.Elem()
	}
	switch value := v.Interface().(type) {
	case time.Duration:
		return deadlines.Text(value)
	case string:
		return yamlText(value)
	case []string:
		if len(value) == 0 {
			return ""
		}
		texts := make([]string, len(value))
		for i, s := range value {
			texts[i] = yamlText(s)
		}
		return "[" + strings.Join(texts, ", ") + "]"
	default:
		return fmt.Sprint(value)
	}
}

func yamlText(s string) string {
	if s == "" || plain.MatchString(s) && !slices.Contains([]string{"true", "false", "null", "yes", "no", "on", "off"}, strings.ToLower(s)) {
		return s
	}
	quoted, err := json.Marshal(s) // a JSON string is a YAML string
	if err != nil {
		return fmt.Sprintf("%q", s)
	}
	return string(quoted)
}

// isFileError tells whether an error already says all: which file, which line, what is wrong.
func isFileError(err error) bool {
	var e *configfile.Error
	return errors.As(err, &e)
}
