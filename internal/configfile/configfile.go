// Package configfile reads a configuration file: a flat YAML mapping whose keys are the names of flags.
//
// It is strict. Whatever is not the plain value of a known key is an error that names the file and the line: an unknown
// or repeated key, a value of the wrong type, a key without a value, and YAML's machinery (anchors, aliases, merges, tags
// and several documents), which a list of settings does not need and a reader would trip over.
package configfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// maxSize is far above what a file of settings needs, and below what would be slow to read.
const maxSize = 256 << 10

// Kind is the type of a key's value.
type Kind int

// The kinds.
const (
	Text     Kind = iota // a string; a number counts as one, as it is written
	Integer              // a decimal number
	Switch               // true or false
	Duration             // a number with a unit, such as 30s; 0 needs none
	List                 // a list of Text
)

// Key is what may stand in the file under a name.
type Key struct {
	Kind    Kind
	Choices []string // of Text; none: any
}

// Setting is a key's value in a file.
type Setting struct {
	Values []string // one, except for a List
	Line   int      // of the key
}

// File is a file that has been read.
type File struct {
	Path     string
	Settings map[string]Setting
}

// Error is a mistake in a file.
type Error struct {
	Path string
	Line int // 0: none in particular
	Text string
	Err  error // nil: none beneath it
}

func (e *Error) Error() string {
	where := e.Path
	if e.Line > 0 {
		where += ":" + strconv.Itoa(e.Line)
	}
	return where + ": " + e.Text
}

// Unwrap returns what lies beneath.
func (e *Error) Unwrap() error { return e.Err }

// Load reads the file at path. All its errors are an *Error.
func Load(path string, keys map[string]Key) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &Error{Path: path, Text: fmt.Sprintf("the configuration file cannot be read: %v", withoutPath(err)), Err: err}
	}
	defer f.Close() //nolint:errcheck // only read
	text, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, &Error{Path: path, Text: fmt.Sprintf("the configuration file cannot be read: %v", withoutPath(err)), Err: err}
	}
	return Parse(path, text, keys)
}

func withoutPath(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// Parse is Load for a text; path stands in its errors.
func Parse(path string, text []byte, keys map[string]Key) (*File, error) {
	if len(text) > maxSize {
		return nil, &Error{Path: path, Text: fmt.Sprintf("the configuration file has more than %d bytes", maxSize)}
	}
	line := 0
	for part := range bytes.SplitSeq(text, []byte("\n")) {
		line++
		if !utf8.Valid(part) {
			return nil, &Error{Path: path, Line: line, Text: "this is no UTF-8 text: save the file as UTF-8"}
		}
	}
	r := reader{path: path, keys: keys, file: &File{Path: path, Settings: make(map[string]Setting)}}
	tree, err := parser.ParseBytes(text, 0)
	if err != nil {
		return nil, r.syntax(err)
	}
	documents := 0
	for _, doc := range tree.Docs {
		if doc.Body == nil || doc.Body.Type() == ast.CommentType || doc.Body.Type() == ast.NullType {
			continue
		}
		if documents++; documents > 1 {
			return nil, r.wrong(doc.Body, "a second document begins here: write all settings in one")
		}
		if err := r.root(doc.Body); err != nil {
			return nil, err
		}
	}
	return r.file, nil
}

type reader struct {
	path string
	keys map[string]Key
	file *File
}

func (r *reader) wrong(n ast.Node, format string, args ...any) error {
	line := 0
	if n != nil {
		line = lineOf(n.GetToken())
	}
	return &Error{Path: r.path, Line: line, Text: fmt.Sprintf(format, args...)}
}

func lineOf(t *token.Token) int {
	if t == nil || t.Position == nil {
		return 0
	}
	return t.Position.Line
}

func (r *reader) syntax(err error) error {
	var at yaml.Error
	if errors.As(err, &at) {
		return &Error{Path: r.path, Line: lineOf(at.GetToken()), Text: strings.TrimSpace(at.GetMessage()), Err: err}
	}
	return &Error{Path: r.path, Text: strings.TrimSpace(err.Error()), Err: err}
}

func (r *reader) root(n ast.Node) error {
	m, ok := n.(*ast.MappingNode)
	if !ok {
		return r.wrong(n, "there are no settings here: write each as NAME: VALUE, with a blank after the colon")
	}
	for _, entry := range m.Values {
		if err := r.entry(entry); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) entry(entry *ast.MappingValueNode) error {
	name, ok := entry.Key.(*ast.StringNode)
	if !ok {
		return r.wrong(entry.Key, "%s is no setting: write NAME: VALUE", entry.Key)
	}
	key, ok := r.keys[name.Value]
	if !ok {
		return r.wrong(name, "there is no setting %q%s", name.Value, r.meant(name.Value))
	}
	if before, ok := r.file.Settings[name.Value]; ok {
		return r.wrong(name, "%s is set in line %d already: remove one of the two", name.Value, before.Line)
	}
	values, err := r.values(name.Value, key, entry.Value)
	if err != nil {
		return err
	}
	r.file.Settings[name.Value] = Setting{Values: values, Line: lineOf(name.GetToken())}
	return nil
}

// meant finds the key that a mistyped one was to be.
func (r *reader) meant(name string) string {
	plain := func(s string) string { return strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(s)) }
	for _, known := range slices.Sorted(maps.Keys(r.keys)) {
		if plain(known) == plain(name) || plain(known) == plain(name)+"s" || plain(known)+"s" == plain(name) {
			return fmt.Sprintf(": write %s", known)
		}
	}
	return ": they are named as the flags of gapless run, without the dashes before"
}

func (r *reader) values(name string, key Key, n ast.Node) ([]string, error) {
	if key.Kind != List {
		v, err := r.scalar(name, key, n)
		return []string{v}, err
	}
	list, ok := n.(*ast.SequenceNode)
	if !ok {
		return nil, r.wrong(n, "%s takes a list: write %s: [VALUE, VALUE], or one \"- VALUE\" in each line", name, name)
	}
	values := make([]string, 0, len(list.Values))
	for _, item := range list.Values {
		v, err := r.scalar(name, Key{}, item)
		if err != nil {
			return nil, err
		}
		values = append(values, v)
	}
	return values, nil
}

func (r *reader) scalar(name string, key Key, n ast.Node) (string, error) {
	text, plain := "", false
	switch n := n.(type) {
	case *ast.StringNode:
		text = n.Value
		plain = n.Token != nil && n.Token.Type == token.StringType
	case *ast.LiteralNode:
		if n.Value != nil {
			text = n.Value.Value
		}
	case *ast.IntegerNode, *ast.FloatNode:
		text, plain = n.GetToken().Value, true // as it is written: 027 is a umask, not 23
	case *ast.BoolNode:
		if key.Kind != Switch {
			return "", r.wrong(n, "%s takes %s and not true or false: put it in quotes if it is meant so", name, key)
		}
		return strconv.FormatBool(n.Value), nil
	case *ast.NullNode:
		return "", r.wrong(n, "%s has no value: write one, or remove the line", name)
	case *ast.SequenceNode, *ast.MappingNode, *ast.MappingValueNode:
		return "", r.wrong(n, "%s takes %s and not a list or a mapping", name, key)
	default:
		return "", r.wrong(n, "%s takes %s: anchors, aliases, merges and tags of YAML are not supported", name, key)
	}
	if why := key.refuse(text, plain); why != "" {
		return "", r.wrong(n, "%s takes %s, got %q%s", name, key, text, why)
	}
	return text, nil
}

// refuse says why text is no value of the key; "" if it is one.
func (k Key) refuse(text string, plain bool) string {
	switch k.Kind {
	case Text, List:
		switch {
		case len(k.Choices) > 0 && !slices.Contains(k.Choices, text):
			return ": choose one of them"
		case strings.ContainsRune(text, 0):
			return ": it holds a zero byte"
		}
	case Integer:
		if _, err := strconv.ParseInt(text, 10, 32); err != nil || !plain {
			return ": write only digits"
		}
	case Switch:
		return ": write true or false"
	case Duration:
		if _, err := time.ParseDuration(text); err != nil {
			if _, err := strconv.ParseFloat(text, 64); err == nil {
				return fmt.Sprintf(", which has no unit: write %ss for seconds", text)
			}
			return ": write, for example, 30s or 1m30s"
		}
	}
	return ""
}

// String says what the key takes.
func (k Key) String() string {
	switch k.Kind {
	case Integer:
		return "a number"
	case Switch:
		return "true or false"
	case Duration:
		return "a duration"
	case Text, List:
	}
	if len(k.Choices) > 0 {
		return strings.Join(k.Choices, ", ")
	}
	return "a text"
}
