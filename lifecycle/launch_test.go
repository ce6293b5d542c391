package lifecycle

import (
	"os"
	"slices"
	"strings"
	"testing"

	"gapless/workerpool"
)

func TestLauncher_FillsInPlaceholders(t *testing.T) {
	sockets := []workerpool.Socket{{Name: "http"}, {Name: "admin"}}
	for _, tc := range []struct {
		arg, want, err string
	}{
		{arg: "plain", want: "plain"},
		{arg: "{fd}", want: "3"},
		{arg: "--fd={fd}", want: "--fd=3"},
		{arg: "{fd:http}", want: "3"},
		{arg: "{fd:admin}", want: "4"},
		{arg: "{worker}-{generation}-{worker}", want: "2-7-2"},
		{arg: "{fd:admin},{fd}", want: "4,3"},
		{arg: "{}", want: "{}"},
		{arg: "{fds} {Fd} {pid} ${HOME}", want: "{fds} {Fd} {pid} ${HOME}"},
		{arg: `{"fd": 3}`, want: `{"fd": 3}`},
		{arg: "{{fd}}", want: "{3}"},
		{arg: "{fd:}", err: `no --listen is called "", as {fd:} in the command asks; its names are http, admin`},
		{arg: "{fd:metrics}", err: `no --listen is called "metrics", as {fd:metrics} in the command asks; its names are http, admin`},
	} {
		t.Run(tc.arg, func(t *testing.T) {
			l := &launcher{release: &release{argv: []string{"server", tc.arg}}, generation: 7, revision: 3}
			got, err := l.launch(2, sockets)
			if tc.err != "" {
				if err == nil || err.Error() != tc.err {
					t.Errorf("got %v, want %s", err, tc.err)
				}
				return
			}
			if err != nil || !slices.Equal(got.Args, []string{"server", tc.want}) {
				t.Errorf("got %q, %v; want %q", got.Args, err, tc.want)
			}
			if l.release.argv[1] != tc.arg {
				t.Error("the next worker would get this one's arguments")
			}
		})
	}
}

func TestLauncher_TellsTheWorkerWhoItIs(t *testing.T) {
	uid, umask := 1000, 0o27
	env := make([]string, 1, 10) // with room that two launches must not share
	env[0] = "A=1"
	l := &launcher{
		release: &release{argv: []string{"server"}, path: "/bin/server"}, env: env, generation: 7, revision: 3, nofile: 500,
		handoff: os.Stdin, tickets: os.Stdout, ids: credentials{uid: &uid, groups: []int{5}}, umask: &umask,
	}
	first, err := l.launch(0, nil)
	if err != nil {
		t.Fatal(err)
	}
	second, err := l.launch(1, nil)
	if err != nil {
		t.Fatal(err)
	}
	for slot, got := range []workerpool.Launch{first, second} {
		want := []string{"A=1", "GAPLESS_WORKER=" + string(rune('0'+slot)), "GAPLESS_GENERATION=7", "GAPLESS_REVISION=3"}
		if !slices.Equal(got.Env, want) {
			t.Errorf("environment of slot %d: %q, want %q", slot, got.Env, want)
		}
		if got.Path != "/bin/server" || got.UID != &uid || got.Umask != &umask || got.NoFile != 500 || !slices.Equal(got.Groups, []int{5}) {
			t.Errorf("launch %+v", got)
		}
		if len(got.Extra) != 2 || got.Extra[0] != (workerpool.Extra{Variable: "GAPLESS_HANDOFF", File: os.Stdin}) ||
			got.Extra[1] != (workerpool.Extra{Variable: ticketsVariable, File: os.Stdout}) {
			t.Errorf("extra %+v", got.Extra)
		}
	}
	for _, tc := range []struct {
		name    string
		env     string
		crowded bool
		want    bool
	}{
		{"a CPU for each", "A=1", false, false},
		{"more workers than CPUs", "A=1", true, true},
		{"the user has said how many", "GOMAXPROCS=3", true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := &launcher{release: l.release, env: []string{tc.env}, crowded: func() bool { return tc.crowded }}
			got, err := l.launch(0, nil)
			if has := slices.Contains(got.Env, "GOMAXPROCS=1"); err != nil || has != tc.want {
				t.Errorf("environment %q, %v; one thread: want %v", got.Env, err, tc.want)
			}
		})
	}
	l.handoff, l.tickets = nil, nil
	if bare, err := l.launch(0, nil); err != nil || len(bare.Extra) != 0 {
		t.Errorf("without queue and tickets: %+v, %v", bare.Extra, err)
	}
}

func TestWorkerEnviron_KeepsTheManagersVariablesAway(t *testing.T) {
	environ := []string{
		"PATH=/bin", "HOME=/root", "EMPTY=", "EQUALS=a=b",
		"NOTIFY_SOCKET=@x", "FDSTORE=1", "LISTEN_PIDFDID=1", "WATCHDOG_USEC=1", "WATCHDOG_PID=2", "LISTEN_PID=3", "LISTEN_FDS=4", "LISTEN_FDNAMES=a", "MAINPID=5",
		"GAPLESS_WORKERS=4", "GAPLESS_LINK_FD=9", "TABLEFLIP_HAS_PARENT_7DIU3=yes", "PWD=/old", "WEB_CONCURRENCY=4",
		"LISTEN_FDS_START=kept", "XPWD=kept",
	}
	want := []string{"PATH=/bin", "HOME=/root", "EMPTY=", "EQUALS=a=b", "LISTEN_FDS_START=kept", "XPWD=kept", "PWD=/srv/app", "WEB_CONCURRENCY=1"}
	if got := workerEnviron(environ, "/srv/app"); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestReadEnvFiles_TheLaterBeatsTheEarlier(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := dir + "/" + name
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	first := write("first", "A=1\nB=two words\n# a comment\nexport C=\"x y\"\n")
	second := write("second", "A=3\n")
	got, err := readEnvFiles([]string{"A=0", "Z=1"}, []string{first, second})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	if want := []string{"A=3", "B=two words", "C=x y", "Z=1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	missing := dir + "/missing"
	if _, err := readEnvFiles(nil, []string{missing}); err == nil || !strings.HasPrefix(err.Error(), "--env-file "+missing+": no such file") {
		t.Errorf("got %v", err)
	}
}
