//go:build linux

package systemd

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"gapless/internal/control"
)

// bin is gapless, as the host sees it.
func (h *host) bin() string { return h.folder() + "/gapless" }

// app is a service that gapless install has made.
type app struct {
	*host
	name, addr string
	release    int
}

// put copies a file into the host; a link to the new one takes the place of the old, as a deploy should.
func (h *host) put(source, name string) {
	h.t.Helper()
	in, err := os.Open(source)
	if err != nil {
		h.t.Fatal(err)
	}
	defer in.Close()
	target := h.path(name)
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		h.t.Fatal(err)
	}
	out, err := os.OpenFile(target+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		h.t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	if failed := out.Close(); err == nil {
		err = failed
	}
	if err == nil {
		err = os.Rename(target+".new", target)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// install installs an app of two workers.
func (h *host) install(name string, port int, flags ...string) *app {
	h.t.Helper()
	number := h.port(port)
	a := &app{host: h, name: name, addr: "127.0.0.1:" + number}
	a.deploy("")
	args := []string{h.bin(), "install", "--name", name, "--port", number, "-w", "2", "--log-format", "json", "--chdir", a.current()}
	h.must(append(append(args, flags...), "--", "./server", "app")...)
	return a
}

func (a *app) current() string { return a.folder() + "/" + a.name + "/current" }

// deploy puts a release on disk; broken is a shell script in the server's place.
func (a *app) deploy(broken string) {
	a.t.Helper()
	a.release++
	release := fmt.Sprintf("%s/%s/release%d", a.folder(), a.name, a.release)
	server := a.path(release + "/server")
	err := os.MkdirAll(filepath.Dir(server), 0o755)
	switch {
	case err != nil:
	case broken != "":
		err = os.WriteFile(server, []byte("#!/bin/sh\n"+broken+"\n"), 0o755)
	default:
		a.put(gapless, a.bin())
		err = os.Link(a.path(a.bin()), server)
	}
	link := a.path(a.current())
	if err == nil {
		err = os.Symlink(filepath.Base(release), link+".new")
	}
	if err == nil {
		err = os.Rename(link+".new", link)
	}
	if err != nil {
		a.t.Fatal(err)
	}
}

// control is the path of its control socket.
func (a *app) control() string {
	words := strings.Fields(a.property(a.name+".service", "ExecStart"))
	for i, w := range words {
		if w == "--control" {
			return words[i+1]
		}
	}
	a.t.Fatalf("no --control in %q", words)
	return ""
}

// status is what gapless says of itself; ok is false while it says nothing.
func (a *app) status() (st control.Status, ok bool) {
	out, err := a.try(a.bin(), "status", "--json", "--control", a.control())
	return st, err == nil && json.Unmarshal([]byte(out), &st) == nil
}

// serving waits until nothing but generation serves, with two workers.
func (a *app) serving(generation int) control.Status {
	a.t.Helper()
	var st control.Status
	a.eventually(fmt.Sprintf("generation %d serves alone", generation), func() bool {
		var ok bool
		st, ok = a.status()
		if !ok || len(st.Generations) != 1 || st.Generations[0].Generation != generation {
			return false
		}
		ready := 0
		for _, w := range st.Generations[0].Workers {
			if w.State == "ready" {
				ready++
			}
		}
		return ready == 2
	})
	return st
}

func (a *app) mainPID() string {
	a.t.Helper()
	return a.property(a.name+".service", "MainPID")
}
