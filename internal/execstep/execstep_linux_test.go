package execstep

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// reporter makes the test binary a command that tells what it was started with.
const reporter = "EXECSTEP_TEST_REPORT"

func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 1 && os.Args[1] == Verb:
		_ = Main(os.Args[2:]) // the reason went to the pipe
		os.Exit(126)
	case Here() != nil:
		os.Exit(126)
	case os.Getenv(reporter) != "":
		_ = json.NewEncoder(os.Stdout).Encode(lookAround())
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// surroundings are what the command finds.
type surroundings struct {
	PID   int
	Args  []string
	Env   []string
	Dir   string
	Umask int
	Limit uint64         // on open files
	Files map[int]string // what its descriptors are, without those that the Go runtime opened since
}

func lookAround() (s surroundings) {
	s.PID, s.Args, s.Env = os.Getpid(), os.Args, os.Environ()
	s.Dir, _ = os.Readlink("/proc/self/cwd")
	s.Umask = unix.Umask(0)
	var lim unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &lim)
	s.Limit = lim.Cur
	s.Files = make(map[int]string)
	for fd := range 100 {
		if target, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd)); err == nil && !strings.Contains(target, "anon_inode") && !strings.HasPrefix(target, "/sys/fs/cgroup/") {
			s.Files[fd] = target
		}
	}
	return s
}

// outcome is what came of a step.
type outcome struct {
	pid    int
	stdout string
	report string // why the command did not run; "" if it did
	status int
}

// perform runs a step with the files that it wants before the working directory, and one that nobody ordered at the end.
func perform(t *testing.T, s Step, dir string, exe *os.File, argv, env []string, files ...*os.File) outcome {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	stray, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer stray.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if env, err = s.Environ(env); err != nil {
		t.Fatal(err)
	}
	files = append(slices.Clone(files), d)
	if exe != nil {
		files = append(files, exe)
	}
	cmd := exec.Command(self, append([]string{Verb}, argv...)...)
	if s.Inside() {
		cmd.Args = argv
	}
	cmd.Env, cmd.ExtraFiles = env, append(files, w, stray)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	report, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return outcome{cmd.Process.Pid, out.String(), string(report), cmd.ProcessState.ExitCode()}
}

// found runs the reporter by a step and returns what it found.
func found(t *testing.T, s Step, dir string, exe *os.File, files ...*os.File) (surroundings, int) {
	t.Helper()
	o := perform(t, s, dir, exe, []string{"my-server", "--fd", "3"}, []string{reporter + "=1", "KEEP=me"}, files...)
	if o.report != "" || o.status != 0 {
		t.Fatalf("the command did not run: %q, status %d", o.report, o.status)
	}
	var got surroundings
	if err := json.Unmarshal([]byte(o.stdout), &got); err != nil {
		t.Fatalf("%q: %v", o.stdout, err)
	}
	return got, o.pid
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// named returns n files with known names.
func named(t *testing.T, n int) (files []*os.File) {
	t.Helper()
	for i := range n {
		f, err := os.Create(filepath.Join(t.TempDir(), fmt.Sprint("file-", i)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		files = append(files, f)
	}
	return files
}

func TestStep_GivesTheCommandItsSocketsAndNothingElse(t *testing.T) {
	for name, path := range map[string]string{"by an exec": self(t), "without one": OwnBinary} {
		t.Run(name, func(t *testing.T) { testSurroundings(t, path) })
	}
}

func testSurroundings(t *testing.T, path string) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	umask := 0o27
	files := named(t, 3)
	got, pid := found(t, Step{
		Path: path, Names: []string{"http", "admin"}, Extra: []string{"GAPLESS_CHANNEL"}, Umask: &umask,
		Watchdog: 1500 * time.Millisecond,
	}, dir, nil, files...)

	want := []string{
		reporter + "=1", "KEEP=me", fmt.Sprintf("LISTEN_PID=%d", pid), "LISTEN_FDS=2", "LISTEN_FDNAMES=http:admin",
		"GAPLESS_CHANNEL=5", "WATCHDOG_USEC=1500000", fmt.Sprintf("WATCHDOG_PID=%d", pid),
	}
	slices.Sort(want)
	slices.Sort(got.Env)
	if !slices.Equal(got.Env, want) {
		t.Errorf("environment %q, want %q", got.Env, want)
	}
	if got.PID != pid || !slices.Equal(got.Args, []string{"my-server", "--fd", "3"}) {
		t.Errorf("pid %d (of %d), arguments %q", got.PID, pid, got.Args)
	}
	if got.Dir != dir || got.Umask != umask {
		t.Errorf("in %s, umask %o", got.Dir, got.Umask)
	}
	for i, f := range files {
		if got.Files[FirstFD+i] != f.Name() {
			t.Errorf("descriptor %d is %q, want %s", FirstFD+i, got.Files[FirstFD+i], f.Name())
		}
		delete(got.Files, FirstFD+i)
	}
	for fd := range 3 {
		delete(got.Files, fd)
	}
	if len(got.Files) != 0 {
		t.Errorf("the command also got %v", got.Files)
	}
}

func TestStep_WithoutSocketsSaysNothingOfThem(t *testing.T) {
	got, _ := found(t, Step{Path: self(t)}, "/", nil)
	if slices.ContainsFunc(got.Env, func(kv string) bool { return strings.HasPrefix(kv, "LISTEN_") || strings.HasPrefix(kv, "WATCHDOG_") }) {
		t.Errorf("environment %q", got.Env)
	}
}

// Another worker may share the socket and wait in accept(2): it must not find there, all at once, that nothing is there.
func TestStep_LeavesASocketThatBlocks(t *testing.T) {
	for name, path := range map[string]string{"by an exec": self(t), "without one": OwnBinary} {
		t.Run(name, func(t *testing.T) {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fds[1])
			socket := os.NewFile(uintptr(fds[0]), "socket")
			defer socket.Close()
			found(t, Step{Path: path, Names: []string{"http"}}, "/", nil, socket)
			if flags, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
				t.Errorf("flags %#x, %v", flags, err)
			}
		})
	}
}

func TestStep_SetsTheLimitOnOpenFiles(t *testing.T) {
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		nofile uint64
		want   uint64
	}{{"as many as are allowed", 0, lim.Max}, {"fewer", 123, 123}, {"more than are allowed", 1 << 40, lim.Max}} {
		t.Run(tc.name, func(t *testing.T) {
			o := perform(t, Step{Path: "/bin/sh", NoFile: tc.nofile}, "/", nil, []string{"sh", "-c", "ulimit -n; ulimit -Hn"}, nil)
			if want := fmt.Sprintf("%d\n%d\n", tc.want, lim.Max); o.report != "" || o.stdout != want {
				t.Errorf("got %+v, want %q", o, want)
			}
			if got, _ := found(t, Step{Path: OwnBinary, NoFile: tc.nofile}, "/", nil); got.Limit != tc.want {
				t.Errorf("without an exec: %d, want %d", got.Limit, tc.want)
			}
		})
	}
}

// pinned copies a file, opens it as a release does and removes it.
func pinned(t *testing.T, data []byte) (path string, f *os.File) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "server")
	if err := os.WriteFile(path, data, 0o755); err != nil { //nolint:gosec // it is to be executed
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	return path, f
}

func TestStep_RunsAPinnedBinaryThatWasRemoved(t *testing.T) {
	data, err := os.ReadFile(self(t))
	if err != nil {
		t.Fatal(err)
	}
	path, exe := pinned(t, data)
	got, _ := found(t, Step{Path: path, ByFD: true, Names: []string{"http"}}, "/", exe, named(t, 1)...)
	if len(got.Files) != 4 {
		t.Errorf("the command got %v", got.Files)
	}
}

func TestStep_RunsAPinnedScriptThatWasRemoved(t *testing.T) {
	path, exe := pinned(t, []byte("#!/bin/sh\necho script $1 $LISTEN_FDS\n"))
	o := perform(t, Step{Path: path, ByFD: true, Names: []string{"http"}}, "/", exe, []string{"server", "one"}, []string{"PATH=/bin"}, named(t, 1)...)
	if o.report != "" || o.stdout != "script one 1\n" {
		t.Errorf("got %+v", o)
	}
}

func TestStep_SaysWhyTheCommandDidNotRun(t *testing.T) {
	nobody := 65534
	for _, tc := range []struct {
		name string
		step Step
		argv []string
		want string
	}{
		{"no such file", Step{Path: "/no/such/server"}, []string{"server"}, "execute /no/such/server: no such file or directory"},
		{"no format", Step{Path: "/proc/self/environ"}, []string{"server"}, "execute /proc/self/environ: permission denied"},
		{"no command", Step{Path: "/bin/sh"}, nil, "no command"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if o := perform(t, tc.step, "/", nil, tc.argv, nil); o.report != tc.want || o.status != 126 || o.stdout != "" {
				t.Errorf("got %+v, want %q", o, tc.want)
			}
		})
	}
	t.Run("credentials", func(t *testing.T) {
		o := perform(t, Step{Path: "/bin/sh", UID: &nobody, GID: &nobody, Groups: []int{65533}}, "/", nil,
			[]string{"sh", "-c", "id -u; id -g; id -G"}, []string{"PATH=/usr/bin:/bin"})
		if os.Getuid() == 0 {
			if o.report != "" || o.stdout != "65534\n65534\n65534 65533\n" {
				t.Errorf("got %+v", o)
			}
		} else if o.report != "set the supplementary groups: operation not permitted" {
			t.Errorf("got %+v", o)
		}
	})
	t.Run("a working directory that is none", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"/bin/sh", OwnBinary} {
			if o := perform(t, Step{Path: path}, file, nil, []string{"sh"}, nil); o.report != "change to the working directory: not a directory" || o.status != 126 {
				t.Errorf("%s: got %+v", path, o)
			}
		}
	})
}

func TestMain_IsNotForCallingByHand(t *testing.T) {
	if err := Main([]string{"sh"}); !errors.Is(err, ErrNoStep) {
		t.Errorf("got %v", err)
	}
	if _, _, err := fromEnviron([]string{variable + "={"}); err == nil || !strings.Contains(err.Error(), "decode the exec step") {
		t.Errorf("got %v", err)
	}
}

func TestStep_TravelsThroughTheEnvironment(t *testing.T) {
	env := make([]string, 1, 10)
	env[0] = "A=1"
	uid := 5
	s := Step{Path: "/bin/x", ByFD: true, Names: []string{"a"}, Extra: []string{"B"}, UID: &uid, NoFile: 9, Watchdog: time.Second}
	with, err := s.Environ(env)
	if err != nil {
		t.Fatal(err)
	}
	if env[:2][1] != "" {
		t.Error("the caller's array was written to")
	}
	got, rest, err := fromEnviron(with)
	if err != nil || !slices.Equal(rest, env) {
		t.Fatal(rest, err)
	}
	a, _ := json.Marshal(s)
	b, _ := json.Marshal(got)
	if string(a) != string(b) {
		t.Errorf("%s became %s", a, b)
	}
}
