//go:build linux

package test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gapless/internal/verify"
)

// verified is what a `gapless verify` came to.
type verified struct {
	verify.Report
	status int
	stderr string
}

// verifies runs `gapless verify --json` and checks what must hold whatever it finds.
func verifies(t *testing.T, env []string, args ...string) verified {
	t.Helper()
	cmd, out, stderr := verifyCommand(t, env, args...)
	v := verified{status: exitStatus(t, cmd.Run()), stderr: stderr.String()}
	if out.Len() > 0 {
		if err := json.Unmarshal(out.Bytes(), &v.Report); err != nil {
			t.Fatalf("%v in %s", err, out.String())
		}
		if v.Status != v.status || v.Requests != v.OK+v.Drops+v.Own+v.Unfinished {
			t.Errorf("status %d and %d in the report; %d requests, %d answered, %d dropped, %d of killed workers", v.status, v.Status, v.Requests, v.OK, v.Drops, v.Own)
		}
	}
	if t.Failed() || testing.Verbose() {
		t.Logf("status %d, reasons %q\n%s", v.status, v.Reasons, v.stderr)
	}
	return v
}

func verifyCommand(t *testing.T, env []string, args ...string) (cmd *exec.Cmd, stdout, stderr *bytes.Buffer) {
	t.Helper()
	s := prepare(t)
	stdout, stderr = new(bytes.Buffer), new(bytes.Buffer)
	// What upgrades take is the binary in the test's own directory; how late a race-built load is on a busy machine proves nothing here.
	cmd = exec.Command(s.bin, append([]string{"verify", "--json", "--max-lag", "1m"}, args...)...)
	cmd.Env = append(append(os.Environ(), s.mark, raceOptions), env...)
	cmd.Dir = s.dir
	cmd.Stdout, cmd.Stderr = stdout, stderr
	t.Cleanup(func() {
		if left := leftovers(s.mark); len(left) > 0 {
			t.Errorf("left behind:\n%s", list(left))
		}
		reapOrphans()
	})
	return cmd, stdout, stderr
}

func exitStatus(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0
}

func rateFlag() string { return "--rate=" + strconv.Itoa(int(requestsPerSecond()/5)) }

// The built-in app: nothing is lost and nothing is closed, however often it is upgraded and whatever is killed.
func TestVerify_BuiltInAppPasses(t *testing.T) {
	n := counted(5, 50)
	page, suite := filepath.Join(t.TempDir(), "page.html"), filepath.Join(t.TempDir(), "suite.xml")
	v := verifies(t, nil, "-w", "2", "--upgrades", strconv.Itoa(n), "--duration", (time.Duration(n+3) * 1500 * time.Millisecond).String(), rateFlag(), "--rtt", "10ms", "--fault", "kill-worker,broken-release", "--fault=kill-master", "--html", page, "--junit", suite)
	if v.status != 0 || v.Drops != 0 || v.ClosedIdle != 0 || len(v.Acts) != n+3 {
		t.Fatalf("status %d %q, %d dropped %+v, %d closed, %d acts", v.status, v.Reasons, v.Drops, v.Failures, v.ClosedIdle, len(v.Acts))
	}
	for i, a := range v.Acts[:n] {
		if !a.FirstSeen || a.Generation != strconv.Itoa(i+2) {
			t.Errorf("upgrade %d: %+v", i+1, a)
		}
	}
	if v.Acts[n].Own != v.Own || v.Own+v.OwnClosed == 0 {
		t.Errorf("the killed worker had %d requests and %d idle connections in hand: one of two, with many connections, must have had some", v.Own, v.OwnClosed)
	}
	for _, s := range v.Streams {
		if s.OK == 0 {
			t.Errorf("nothing of %s was answered", s.Name)
		}
	}
	text, err := os.ReadFile(page)
	if err != nil || !bytes.Contains(text, []byte("PASSED")) || bytes.Contains(text, []byte("http-equiv=\"refresh")) {
		t.Errorf("the page: %v", err)
	}
	var got struct {
		Failures int        `xml:"failures,attr"`
		Cases    []struct{} `xml:"testcase"`
	}
	text, err = os.ReadFile(suite)
	if err = errors.Join(err, xml.Unmarshal(text, &got)); err != nil || got.Failures != 0 || len(got.Cases) != n+5 {
		t.Errorf("the test suite: %+v, %v", got, err)
	}
}

// farAway is a round trip within which a closing and a request so often cross that a server which closes what is idle loses
// about every third connection's next request: not to find one of eighty is not to be expected in the life of this test.
const farAway = "--rtt=100ms"

// What other ways of deploying lose is found: otherwise passing would prove nothing.
func TestVerify_FindsDrops(t *testing.T) {
	tests := []struct {
		name    string
		rate    string
		command []string
	}{
		{"a server that stops by Shutdown alone", "150", role("shutdown")},
		// 40 connections so carry a request each 0.4 to 1.2 s, and the server closes those that are idle for 0.7 s, which
		// every fifth request meets on its way.
		{"a server that closes idle connections", "50", role("closes-idle")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			args := []string{"-w", "2", "--upgrades", "2", farAway, "--rate", tt.rate, "--connections", "40", "--clients", "keep-alive", "--method", "POST", "--body", "hello", "--"}
			v := verifies(t, nil, append(args, tt.command...)...)
			if v.status != 1 || v.Drops == 0 || v.ClosedIdle == 0 {
				t.Errorf("status %d, %d dropped, %d closed: neither may be 0", v.status, v.Drops, v.ClosedIdle)
			}
		})
	}
}

// A tableflip program that stops by Shutdown, measured from outside.
func TestVerify_URLAndDeploy(t *testing.T) {
	t.Parallel()
	dir := publicDir(t)
	pidFile := filepath.Join(dir, "pid")
	addr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	s := prepare(t)
	cmd := exec.Command(built.self)
	cmd.Env = append(os.Environ(), s.mark, raceOptions, roleVariable+"=tableflip", "E2E_ADDR="+addr, "E2E_PID="+pidFile)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	current := func() int {
		text, _ := os.ReadFile(pidFile)
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		return pid
	}
	eventually(t, patience, "the server writes its PID", func() bool { return current() != 0 })
	defer func() {
		for _, p := range leftovers(s.mark) {
			if pr, err := os.FindProcess(p.PID); err == nil {
				_ = pr.Kill()
			}
		}
		eventually(t, patience, "nothing is left", func() bool { reapOrphans(); return len(leftovers(s.mark)) == 0 })
	}()
	deploy := filepath.Join(dir, "deploy")
	// It returns when another process has taken over.
	script := fmt.Sprintf("#!/bin/sh\nold=$(cat %[1]s)\nkill -HUP $old\nwhile [ \"$(cat %[1]s)\" = $old ]; do sleep 0.02; done\n", pidFile)
	if err := os.WriteFile(deploy, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	v := verifies(t, nil, "--url", "http://"+addr+"/", "--deploy", deploy, "--upgrades", "2", farAway, "--rate", "150", "--connections", "40", "--clients", "keep-alive")
	if v.status != 1 || v.Drops == 0 || len(v.Acts) != 2 || !v.Acts[0].OK || !v.Acts[1].OK || v.Acts[0].Name != "deploy" {
		t.Errorf("status %d %q, %d dropped, acts %+v", v.status, v.Reasons, v.Drops, v.Acts)
	}
	v = verifies(t, nil, "--url", "http://"+addr+"/", "--deploy", "echo the reason; exit 3", "--upgrades", "1", "--duration", "1s", "--clients", "new")
	if v.status != 1 || v.Drops != 0 || len(v.Reasons) != 1 || !strings.Contains(v.Reasons[0], "exit status 3: the reason") {
		t.Errorf("a deploy that fails: status %d %q", v.status, v.Reasons)
	}
}

func TestVerify_UvicornWithNewConnections(t *testing.T) {
	path := installed(t, "uvicorn")
	dir := publicDir(t)
	writeFile(t, filepath.Join(dir, "main.py"), fastAPI)
	v := verifies(t, []string{"E2E_STARTUP=0.1"}, "-w", "2", "--upgrades", strconv.Itoa(counted(2, 10)), "--chdir", dir, "--clients", "new,silent", "--rate", "60", "--fault", "broken-release,kill-worker", "--", path, "main:app", "--log-level", "warning")
	if v.status != 0 || v.Drops != 0 || v.ClosedIdle != 0 {
		t.Errorf("status %d %q, %d dropped %+v, %d closed", v.status, v.Reasons, v.Drops, v.Failures, v.ClosedIdle)
	}
}

// What cannot be measured is neither passed nor failed.
func TestVerify_NotMeasured(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"a command that ends", append([]string{"--"}, role("exits-3")...), "the database is missing"},
		{"a command that ends, and why", append([]string{"--"}, role("exits-3")...), "could be measured: worker 0"},
		{"a command that never listens", []string{"--start-timeout", "4s", "--", "sleep", "100"}, "be ready (--start-timeout 4s)\n"},
		{"a command that never listens, and why", []string{"--start-timeout", "1s", "--", "sleep", "100"}, "measured: worker 0 (pid "},
		{"a path that does not exist", []string{"--path", "/nothing", "--upgrades", "0", "--duration", "1s"}, "GET /nothing answers 404 Not Found; give --path, or --expect-status 404"},
		{"no WebSocket", []string{"--ws", "/nothing", "--clients", "websocket", "--upgrades", "0", "--duration", "1s"}, "GET /nothing answers 404 Not Found and opens no WebSocket; give another --ws"},
		{"a rate beyond everything", []string{"--upgrades", "0", "--duration", "1s", "--rate", "900000", "--connections", "1"}, ""},
		{"nobody there", []string{"--url", fmt.Sprintf("http://127.0.0.1:%d", freePort(t)), "--upgrades", "0"}, "does not answer"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			v := verifies(t, nil, tt.args...)
			if v.status == 2 && v.Report.Status != 2 {
				t.Errorf("a report without the status: %+v", v.Report)
			}
			if v.status != 2 || !strings.Contains(v.stderr, tt.want) || tt.want == "" && !strings.Contains(strings.Join(v.Reasons, " "), "keep up") {
				t.Errorf("status %d, %q, %s", v.status, v.Reasons, v.stderr)
			}
		})
	}
}

// Ctrl-C leaves nothing behind and proves nothing.
func TestVerify_Interrupted(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			page, suite := filepath.Join(t.TempDir(), "page.html"), filepath.Join(t.TempDir(), "suite.xml")
			cmd, out, stderr := verifyCommand(t, nil, "--upgrades", "1", "--duration", "1m", "--html", page, "--junit", suite)
			mark := cmd.Env[slices.IndexFunc(cmd.Env, func(v string) bool { return strings.HasPrefix(v, "E2E_RUN=") })]
			cmd.Stderr = nil
			pipe, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 4096)
			if _, err := pipe.Read(buf); err != nil { // the first upgrade has begun
				t.Fatal(err)
			}
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			_, _ = stderr.ReadFrom(pipe)
			err = cmd.Wait()
			if sig == syscall.SIGINT {
				if exitStatus(t, err) != 2 || !strings.Contains(stderr.String(), "gapless: verify: interrupted: nothing is proved\n") {
					t.Errorf("%v, %s", err, stderr)
				}
				var rep verify.Report
				if err := json.Unmarshal(out.Bytes(), &rep); err != nil || rep.Status != 2 || rep.OK == 0 {
					t.Errorf("the report: %v in %s", err, out)
				}
				for _, path := range []string{page, suite} {
					if text, err := os.ReadFile(path); err != nil || !bytes.Contains(text, []byte("NOT MEASURED")) {
						t.Errorf("%s: %v, %s", path, err, text)
					}
				}
			}
			eventually(t, patience, "nothing of it lives", func() bool { reapOrphans(); return len(leftovers(mark)) == 0 })
		})
	}
}
