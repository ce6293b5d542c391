//go:build linux

package test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gapless/internal/control"
)

// A client that goes away in the middle changes nothing: the upgrade goes on, and the next client is served.
func TestControl_ClientGoesAway(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"--before-start", "test $GAPLESS_GENERATION = 1 || sleep 0.5"}})
	for g := 2; g <= counted(3, 10); g++ {
		r := s.verbLater("upgrade")
		s.await("the upgrade has begun", func(e event) bool { return e.Msg == "Upgrade started" && e.To == g })
		kill(r.cmd.Process.Pid)
		if v := r.wait(); v.status == 0 {
			t.Error("it was over too early to be interrupted")
		}
		s.upgraded(g)
		s.settled(g, 2)
	}
	s.status()
	s.stop()
}

// Garbage on the control socket, and clients that say nothing, change nothing.
func TestControl_Garbage(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	before := s.tree()
	path := s.socket()
	for _, text := range []string{
		"", "\x00\x01\x02\xff", "hello\r\n\r\n", strings.Repeat("A", 1<<17),
		"POST /v1/upgrade HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 999999999\r\n\r\n{",
		"POST /v1/upgrade HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 3\r\n\r\n{}}",
		"POST /v1/scale HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{\"workers\":-1}",
		"POST /v1/scale HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 18\r\n\r\n{\"workers\":999999}",
		"POST /v1/upgrade HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{\"unknown\": 1}",
		"GET /v1/upgrade HTTP/1.1\r\nHost: x\r\n\r\n", "DELETE /v1/status HTTP/1.1\r\nHost: x\r\n\r\n", "GET /v2/status HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = c.Write([]byte(text)) // it may have been cut off
		_ = c.(*net.UnixConn).CloseWrite()
		answer := make([]byte, 4096)
		n, _ := c.Read(answer)
		if strings.HasPrefix(string(answer[:n]), "HTTP/1.1 200") {
			t.Errorf("%.60q was answered by %q", text, answer[:n])
		}
		c.Close()
	}
	st := s.status()
	if st.State != control.StateServing || st.Workers != 2 || st.Generations[0].Generation != 1 {
		t.Errorf("now it is %s with %d workers in generation %d", st.State, st.Workers, st.Generations[0].Generation)
	}
	if now := s.tree(); !slices.Equal(pids(now), pids(before)) {
		t.Errorf("the processes were\n%sand are\n%s", list(before), list(now))
	}
	s.stop()
}

// Another user is refused, by the folder and, where that was opened, by his credentials.
func TestControl_AnotherUser(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	path := s.socket()
	setpriv, err := exec.LookPath("setpriv")
	if err != nil || os.Getuid() != 0 {
		t.Logf("no other user can be had here (uid %d, %v): only the modes are tested", os.Getuid(), err)
	}
	for file, mode := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s has mode %v (%v), want %v", file, info.Mode(), err, mode)
		}
	}
	if err != nil || os.Getuid() != 0 {
		return
	}
	stranger := func(args ...string) (int, string) {
		t.Helper()
		cmd := exec.Command(setpriv, append([]string{"--reuid", "65534", "--regid", "65534", "--clear-groups"}, args...)...)
		cmd.Dir = s.dir
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), string(out)
	}
	// The client is one that asks nothing about who listens.
	curl := func(verb, body string) []string {
		return []string{"curl", "-sS", "--max-time", "5", "--unix-socket", path, "-H", "Content-Type: application/json", "-X", "POST", "-d", body, "http://gapless/v1/" + verb}
	}
	for _, opened := range []bool{false, true} {
		if opened {
			if err := os.Chmod(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		for verb, body := range map[string]string{"upgrade": "{}", "reload": "{}", "scale": `{"workers":5}`, "stop": "{}"} {
			status, text := stranger(curl(verb, body)...)
			if status == 0 && !strings.Contains(text, "403") && !strings.Contains(text, "forbidden") && !strings.Contains(text, "user") {
				t.Errorf("opened %v: %s was answered %q", opened, verb, text)
			}
		}
		if status, text := stranger(s.bin, "status", "--control", path); status == 0 {
			t.Errorf("opened %v: another user was told the status: %s", opened, text)
		}
	}
	st := s.status()
	if st.State != control.StateServing || st.Workers != 2 || len(st.Generations) != 1 || st.Generations[0].Generation != 1 || st.Generations[0].Revision != 1 {
		t.Errorf("something has changed: %s, %d workers, %+v", st.State, st.Workers, st.Generations)
	}
	if n := len(s.out.find(func(e event) bool {
		return e.Msg == "Upgrade started" || e.Msg == "Reload started" || e.Msg == "Scaling" || e.Msg == "Shutting down"
	})); n > 0 {
		t.Errorf("%d things were begun for another user", n)
	}
	s.stop()
}
