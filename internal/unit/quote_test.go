package unit

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// words reads an Exec line as systemd does: continued lines are joined, words are split at blanks, quotes and backslashes
// taken off, specifiers replaced (here: only %% is known), then variables (only $$).
func words(line string) ([]string, error) {
	line = strings.ReplaceAll(strings.TrimSuffix(line, "\n"), "\\\n", " ")
	if strings.Contains(line, "\n") {
		return nil, errors.New("a second line")
	}
	var all []string
	for i := 0; i < len(line); {
		if line[i] == ' ' || line[i] == '\t' {
			i++
			continue
		}
		if line[i] == ';' && (i+1 == len(line) || line[i+1] == ' ') {
			return nil, errors.New("a second command")
		}
		var b strings.Builder
		var in byte
		for ; i < len(line) && (in != 0 || line[i] != ' ' && line[i] != '\t'); i++ {
			c := line[i]
			switch {
			case in != 0 && c == in:
				in = 0
			case in == 0 && (c == '"' || c == '\''):
				in = c
			case c == '\\':
				if i++; i == len(line) {
					return nil, errors.New("a backslash at the end")
				}
				switch line[i] {
				case '\\', '"', '\'':
					b.WriteByte(line[i])
				case 'n':
					b.WriteByte('\n')
				case 't':
					b.WriteByte('\t')
				case 'x':
					if i+2 >= len(line) {
						return nil, errors.New("a short escape")
					}
					n, err := strconv.ParseUint(line[i+1:i+3], 16, 8)
					if err != nil {
						return nil, err
					}
					b.WriteByte(byte(n))
					i += 2
				default:
					return nil, fmt.Errorf("the escape \\%c", line[i])
				}
			default:
				b.WriteByte(c)
			}
		}
		if in != 0 {
			return nil, errors.New("a quote is open")
		}
		word, err := halve(b.String(), '%')
		if err == nil {
			word, err = halve(word, '$')
		}
		if err != nil {
			return nil, err
		}
		all = append(all, word)
	}
	return all, nil
}

// halve replaces each doubled c by one, and refuses a single one.
func halve(s string, c byte) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == c {
			if i++; i == len(s) || s[i] != c {
				return "", fmt.Errorf("a single %c", c)
			}
		}
		b.WriteByte(s[i])
	}
	return b.String(), nil
}

func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", " ", ";", "a b", "%h", "100%", "$HOME", "${HOME}", "$$", `"`, `'`, `\`, `\x41`, "\n", "\t\x01\x7f", "ä→", "{fd}", "-", "@", "#x", "--x=y z"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if checkText("it", a) != nil || checkText("it", b) != nil {
			return
		}
		want := []string{a, b, strings.Repeat("x", lineWidth), a}
		var quoted []string
		for _, w := range want {
			quoted = append(quoted, quoteArgument(w))
		}
		line := execLine("ExecStart", quoted)
		got, err := words(strings.TrimPrefix(line, "ExecStart="))
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q is written as\n%s\nwhich systemd reads as %q, %v", want, line, got, err)
		}
	})
}

func TestQuoteProgram_Refuses(t *testing.T) {
	for _, path := range []string{"", "gapless", "./gapless", "/opt/../gapless", "/opt/$x/gapless", "/opt/\xff", "/opt/a\x00b"} {
		if got, err := quoteProgram(path); !errors.Is(err, ErrUnwritable) {
			t.Errorf("%q is written as %s, %v", path, got, err)
		}
	}
	got, err := quoteProgram("/opt/my app/100%/gapless")
	if want := `"/opt/my app/100%%/gapless"`; got != want || err != nil {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
}

func TestValue(t *testing.T) {
	for _, s := range []string{"a\nExecStart=/bin/x", " a", "a ", "a\x00", "\xff", `a\`} {
		if got, err := value("it", s); !errors.Is(err, ErrUnwritable) {
			t.Errorf("%q is written as %q, %v", s, got, err)
		}
	}
	if got, err := value("it", `/srv/my app/100%`); got != `/srv/my app/100%%` || err != nil {
		t.Errorf("got %s, %v", got, err)
	}
}
