package main

import (
	"os"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// docs/cli.md is a contract: every flag of run stands in it, in a row of the table, with its default.
func TestDocs_HoldEveryFlagOfRun(t *testing.T) {
	text, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	var c cli
	parser, err := newParser(&c, os.Stdout, os.Stderr, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	var run *kong.Node
	for _, n := range parser.Model.Children {
		if n.Name == "run" {
			run = n
		}
	}
	if run == nil {
		t.Fatal("there is no verb run")
	}
	for _, f := range run.Flags {
		if f.Name == "help" {
			continue
		}
		name, row := "--"+f.Name, ""
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "| `") && (strings.Contains(line, "`"+name+" ") || strings.Contains(line, "`"+name+"`")) {
				row = line
				break
			}
		}
		if row == "" {
			t.Errorf("%s has no row in docs/cli.md", name)
			continue
		}
		if cell := strings.TrimSpace(strings.Split(row, "|")[2]); f.Default != "" && cell != f.Default {
			t.Errorf("%s: its default is %q, and docs/cli.md says %q", name, f.Default, cell)
		}
	}
}

// Help and docs/cli.md have the flags of run in the same groups, so that who has read one finds them in the other.
func TestDocs_GroupTheFlagsOfRun(t *testing.T) {
	text, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	group := ""
	got := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if title, ok := strings.CutPrefix(line, "| **"); ok {
			group, _, _ = strings.Cut(title, "**")
		}
		if !strings.HasPrefix(line, "| `-") {
			if strings.TrimSpace(line) == "" && group != "" {
				break // the end of the table
			}
			continue
		}
		for _, word := range strings.FieldsFunc(strings.Split(line, "|")[1], func(r rune) bool { return strings.ContainsRune("`, ", r) }) {
			if name, ok := strings.CutPrefix(word, "--"); ok {
				got[name] = group
			}
		}
	}
	parser, err := newParser(new(cli), os.Stdout, os.Stderr, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range parser.Model.Children {
		if n.Name != "run" {
			continue
		}
		for _, f := range n.Flags {
			want := ""
			if f.Group != nil {
				want = f.Group.Title
			}
			if want == "" && f.Name != "help" && f.Name != "config" {
				t.Errorf("--%s is in no group", f.Name)
			}
			if got[f.Name] != want {
				t.Errorf("--%s is under %q in help and under %q in docs/cli.md", f.Name, want, got[f.Name])
			}
		}
	}
}

// Each verb that help shows stands in docs/cli.md.
func TestDocs_HoldEveryVerb(t *testing.T) {
	text, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	var c cli
	parser, err := newParser(&c, os.Stdout, os.Stderr, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range parser.Model.Children {
		if !strings.Contains(string(text), "`gapless "+n.Name) {
			t.Errorf("gapless %s does not stand in docs/cli.md", n.Name)
		}
	}
}
