package configfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func keys() map[string]Key {
	return map[string]Key{
		"workers": {}, "port": {Kind: Integer}, "listen": {Kind: List}, "accept": {Choices: []string{"steered", "shared"}},
		"drain-timeout": {Kind: Duration}, "log-prefix": {Kind: Switch}, "umask": {}, "command": {Kind: List},
	}
}

func TestParse(t *testing.T) {
	one := func(name, value string) map[string]Setting {
		return map[string]Setting{name: {Values: []string{value}, Line: 1}}
	}
	for _, tt := range []struct {
		name, text string
		want       map[string]Setting
	}{
		{"nothing", "", nil},
		{"comments", "# a\n\n# b\n", nil},
		{"an empty document", "---\n", nil},
		{"a number as text", "workers: 4", one("workers", "4")},
		{"text", "workers: auto", one("workers", "auto")},
		{"quoted", `workers: "4"`, one("workers", "4")},
		{"a leading zero", "umask: 027", one("umask", "027")},
		{"a number", "port: 8000", one("port", "8000")},
		{"a negative number", "port: -1", one("port", "-1")},
		{"a switch", "log-prefix: true", one("log-prefix", "true")},
		{"a duration", "drain-timeout: 1m30s", one("drain-timeout", "1m30s")},
		{"no duration", "drain-timeout: 0", one("drain-timeout", "0")},
		{"a choice", "accept: shared # why", one("accept", "shared")},
		{"a list in one line", `listen: [":80", "api=:81"]`, map[string]Setting{"listen": {Values: []string{":80", "api=:81"}, Line: 1}}},
		{"an empty list", `listen: []`, map[string]Setting{"listen": {Values: []string{}, Line: 1}}},
		{"a list in lines", "# c\nlisten:\n  - :80\n  - unix:/a b\n", map[string]Setting{"listen": {Values: []string{":80", "unix:/a b"}, Line: 2}}},
		{"numbers in a list", "command: [sleep, 10, 1.50]", map[string]Setting{"command": {Values: []string{"sleep", "10", "1.50"}, Line: 1}}},
		{"braces", `command: [x, "--fd", "{fd}"]`, map[string]Setting{"command": {Values: []string{"x", "--fd", "{fd}"}, Line: 1}}},
		{"a block of text", "command:\n  - |\n    a\n    b\n", map[string]Setting{"command": {Values: []string{"a\nb\n"}, Line: 1}}},
		{"several", "workers: 2\nport: 1\n", map[string]Setting{"workers": {[]string{"2"}, 1}, "port": {[]string{"1"}, 2}}},
		{"windows", "workers: 2\r\nport: 1\r\n", map[string]Setting{"workers": {[]string{"2"}, 1}, "port": {[]string{"1"}, 2}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := Parse("f.yaml", []byte(tt.text), keys())
			if err != nil {
				t.Fatal(err)
			}
			if len(f.Settings)+len(tt.want) > 0 && !reflect.DeepEqual(f.Settings, tt.want) {
				t.Errorf("got %v, want %v", f.Settings, tt.want)
			}
		})
	}
}

func TestParse_Refuses(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"an unknown key", "workers: 1\n\nworker_count: 2\n", `f.yaml:3: there is no setting "worker_count"`},
		{"a key with an underscore", "drain_timeout: 2s", "f.yaml:1: there is no setting \"drain_timeout\": write drain-timeout"},
		{"a singular", "worker: 2", "write workers"},
		{"a key twice", "workers: 1\nport: 1\nworkers: 2\n", "f.yaml:3:"},
		{"no value", "workers:\nport: 1\n", "f.yaml:1: workers has no value"},
		{"a tilde", "workers: ~", "no value"},
		{"no blank after the colon", "workers:4", "f.yaml:1:"},
		{"a list at the root", "- workers", "f.yaml:1:"},
		{"a scalar at the root", "hello", "f.yaml:1:"},
		{"a text for a number", "port: eighty", `f.yaml:1: port takes a number, got "eighty"`},
		{"a quoted number", `port: "80"`, "write only digits"},
		{"a hexadecimal number", "port: 0x50", "write only digits"},
		{"a fraction for a number", "port: 8.5", "write only digits"},
		{"a huge number", "port: 99999999999999999999", "f.yaml:1: port takes"},
		{"a number for a duration", "drain-timeout: 30", "has no unit: write 30s"},
		{"a switch for text", "workers: true", "workers takes a text and not true or false"},
		{"text for a switch", "log-prefix: yes", "write true or false"},
		{"another choice", "accept: plain", `accept takes steered, shared, got "plain"`},
		{"a scalar for a list", "listen: :80", "listen takes a list: write listen: ["},
		{"a list for a scalar", "workers: [1]", "and not a list or a mapping"},
		{"a mapping for a scalar", "workers: {a: 1}", "and not a list or a mapping"},
		{"a list in a list", "listen: [[a]]", "and not a list or a mapping"},
		{"a null in a list", "listen:\n- a\n-\n", "f.yaml:3"},
		{"an anchor", "workers: &n 4", "anchors"},
		{"an alias", "workers: *n", "f.yaml:1"},
		{"a tag", "workers: !!str 4", "anchors"},
		{"a merge", "<<: {workers: 1}", "f.yaml:1"},
		{"two documents", "workers: 1\n---\nport: 1\n", "f.yaml:3"},
		{"an open quote", "workers: \"4\nport: 1\n", "f.yaml:"},
		{"an open bracket", "listen: [a\n", "f.yaml:"},
		{"a tab", "listen:\n\t- a\n", "f.yaml:2"},
		{"not UTF-8", "workers: \xff\xfe", "f.yaml"},
		{"too much", strings.Repeat("#", maxSize+1), "more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := Parse("f.yaml", []byte(tt.text), keys())
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("Parse = %v, %v; want an *Error", f, err)
			}
			if !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("the error is %q; want one line with %q", err, tt.want)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "g.yaml")
	if _, err := Load(path, keys()); !errors.Is(err, fs.ErrNotExist) || !strings.HasPrefix(err.Error(), path+": ") {
		t.Errorf("Load of no file = %v", err)
	}
	if _, err := Load(filepath.Dir(path), keys()); err == nil {
		t.Error("Load of a folder succeeded")
	}
	if err := os.WriteFile(path, []byte("workers: 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Load(path, keys())
	if err != nil || f.Path != path || f.Settings["workers"].Values[0] != "3" {
		t.Errorf("Load = %+v, %v", f, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", "workers: 4", "listen: [a, b]\nport: 1", "listen:\n- a\n- |\n  x\n", "a: &b {c: *b}", "---\n...\n---", "? a\n: b", "workers: \"\\x00\"",
		"drain-timeout: 1h\naccept: shared # c\n", "\xef\xbb\xbfworkers: 1", "%YAML 1.2\n---\nworkers: 1",
	} {
		f.Add([]byte(seed))
	}
	known := keys()
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := Parse("f.yaml", text, known)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Line < 0 {
				t.Errorf("the error %v is no *Error", err)
			}
			return
		}
		for name, s := range file.Settings {
			key, ok := known[name]
			switch {
			case !ok:
				t.Errorf("%q passed as a key", name)
			case key.Kind != List && len(s.Values) != 1:
				t.Errorf("%s has %d values", name, len(s.Values))
			case key.Kind == Duration:
				if _, err := time.ParseDuration(s.Values[0]); err != nil {
					t.Error(err)
				}
			}
		}
	})
}
