package unit

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"unicode/utf8"
)

// ErrUnwritable is what the errors of texts match that no unit file can hold.
var ErrUnwritable = errors.New("cannot stand in a unit")

// checkText refuses what systemd refuses wherever it stands.
func checkText(what, s string) error {
	switch {
	case !utf8.ValidString(s):
		return fmt.Errorf("%s %q: %w: it is not UTF-8", what, s, ErrUnwritable)
	case strings.ContainsRune(s, 0):
		return fmt.Errorf("%s %q: %w: it holds a NUL", what, s, ErrUnwritable)
	}
	return nil
}

// bare tells the bytes that mean themselves in an Exec line without quotes.
func bare(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-_./:=,@+{}[]", c) >= 0
}

// quoteArgument writes one argument of an Exec line so that the process gets just s: systemd takes off quotes and
// backslashes, then replaces specifiers (%) and then variables ($). s has passed checkText.
func quoteArgument(s string) string { return quote(strings.ReplaceAll(s, "$", "$$")) }

// quoteProgram writes the first word of an Exec line. Variables are not replaced in the path that is executed, but they
// are in the name that the program sees, so a path with a dollar has no spelling.
func quoteProgram(s string) (string, error) {
	if err := checkText("the program", s); err != nil {
		return "", err
	}
	if !path.IsAbs(s) || path.Clean(s) != s {
		return "", fmt.Errorf("the program %q: %w: give its absolute path", s, ErrUnwritable)
	}
	if strings.Contains(s, "$") {
		return "", fmt.Errorf("the program %q: %w: systemd takes the $ in it for a variable: move it, or make a link without one", s, ErrUnwritable)
	}
	return quote(s), nil
}

func quote(s string) string {
	s = strings.ReplaceAll(s, "%", "%%")
	plain := s != ""
	for i := range len(s) {
		if !bare(s[i]) && s[i] != '%' && s[i] != '$' {
			plain = false
			break
		}
	}
	if plain {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\t':
			b.WriteString(`\t`)
		case c < ' ' || c == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// value writes a text as the value of a setting that takes the rest of its line, with specifiers, and no quotes. Such a
// value can hold no line break, and loses blanks around it.
func value(what, s string) (string, error) {
	if err := checkText(what, s); err != nil {
		return "", err
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) || strings.TrimSpace(s) != s || strings.HasSuffix(s, `\`) {
		return "", fmt.Errorf("%s %q: %w: remove control characters, blanks at the ends and a final backslash", what, s, ErrUnwritable)
	}
	return strings.ReplaceAll(s, "%", "%%"), nil
}

// lineWidth is where an Exec line is continued on the next.
const lineWidth = 110

// execLine joins the words of an Exec line, in several lines if it is long. A flag and its value stay together.
func execLine(key string, words []string) string {
	var b strings.Builder
	b.WriteString(key + "=")
	width := b.Len()
	for i, w := range words {
		switch {
		case i == 0:
		case breaks(words, i, width):
			b.WriteString(" \\\n    ")
			width = 4
		default:
			b.WriteByte(' ')
			width++
		}
		b.WriteString(w)
		width += len(w)
	}
	return b.String() + "\n"
}

func breaks(words []string, i, width int) bool {
	if w := words[i]; !strings.HasPrefix(w, "--") || w == "--" || i+1 == len(words) {
		return width+1+len(w) > lineWidth && (!strings.HasPrefix(words[i-1], "--") || words[i-1] == "--")
	}
	return width+2+len(words[i])+len(words[i+1]) > lineWidth
}
