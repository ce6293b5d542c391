package adapter

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRecognise(t *testing.T) {
	none, server, perhaps := Match{}, Match{Uvicorn, true}, Match{Uvicorn, false}
	for _, tt := range []struct {
		command string
		want    Match
	}{
		{"uvicorn main:app --fd {fd}", server},
		{"/usr/bin/uvicorn main:app", server},
		{"./venv/bin/uvicorn main:app", server},
		{"python -m uvicorn main:app", server},
		{"python3.11 -u -m uvicorn main:app", server},
		{"/opt/venv/bin/python3 -X dev -m uvicorn", perhaps}, // dev could be the program
		{"python3 -m http.server", perhaps},
		{"python3 main.py", perhaps},
		{"python3", perhaps},
		{"pypy3 -m uvicorn main:app", server},
		{"fastapi run main.py", server},
		{"python -m fastapi run", server},
		{"fastapi --help", perhaps},
		{"gunicorn -k uvicorn.workers.UvicornWorker main:app", server},
		{"gunicorn --worker-class=uvicorn_worker.UvicornWorker main:app", server},
		{"gunicorn main:app", perhaps},
		{"poetry run uvicorn main:app", server},
		{"uv run --frozen uvicorn main:app", server},
		{"env A=B uvicorn main:app", server},
		{"nice -n 5 uvicorn main:app", server},
		{"opentelemetry-instrument uvicorn main:app", server},
		{"sh -c|exec uvicorn main:app --fd 3", server},
		{"bash -ec|cd /srv && (A=B uvicorn main:app)", server},
		{"sh -c|poetry run python -m uvicorn main:app", server},
		{"sh serve.sh", none},
		{"sh -c", none},
		{"hypercorn main:app", none},
		{"./uvicorn-like", none},
		{"pythonista", none},
		{"sleep 1", none},
		{"node server.js", Match{Node, true}},
		{"/usr/bin/nodejs --max-old-space-size=99 server.js", Match{Node, true}},
		{"sh -c|cd /srv && exec node server.js", Match{Node, true}},
		{"npm start", Match{Node, false}},
		{"npx --yes serve", Match{Node, false}},
		{"node --permission server.js", none},
		{"nodes", none},
		{"env -i nice env nice uvicorn", server},
		{"env", none},
	} {
		t.Run(tt.command, func(t *testing.T) {
			words, script, _ := strings.Cut(tt.command, "|")
			argv := strings.Fields(words)
			if script != "" {
				argv = append(argv, script)
			}
			got, ok := Recognise(argv, "/nonexistent")
			if got != tt.want || ok != (tt.want != none) {
				t.Errorf("got %+v, %v, want %+v", got, ok, tt.want)
			}
		})
	}
	if _, ok := Recognise(nil, ""); ok {
		t.Error("recognised nothing as something")
	}
}

// Whoever runs a script gets the adapter of its interpreter.
func TestRecognise_Scripts(t *testing.T) {
	for _, tt := range []struct {
		line string
		want bool
	}{
		{"#!/usr/bin/python3", true},
		{"#!/usr/bin/env python3", true},
		{"#!/usr/bin/env -S FOO=bar python3 -u", true},
		{"#! /opt/venv/bin/python", true},
		{"#!/usr/bin/env node", true},
		{"#!/bin/sh", false},
		{"#!", false},
		{"\x7fELF", false},
		{"", false},
	} {
		t.Run(tt.line, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "serve")
			if err := os.WriteFile(path, []byte(tt.line+"\nmore\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			m, ok := Recognise([]string{"./serve"}, path)
			if ok != tt.want || m.Expected {
				t.Errorf("got %+v, %v, want %v", m, ok, tt.want)
			}
		})
	}
}

func FuzzRecognise(f *testing.F) {
	for _, s := range []string{"uvicorn\nmain:app", "sh\n-c\nexec uvicorn", "env\nsh\n-c\n", "python\n-m\nuvicorn", "\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		argv := strings.Split(s, "\n")
		if m, ok := Recognise(argv, "/nonexistent"); ok != (m.Name != "") {
			t.Errorf("%q: %+v, %v", argv, m, ok)
		}
	})
}
