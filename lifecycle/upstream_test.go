package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// transcript is what a manager above was told.
type transcript struct {
	said []string
	err  error
}

func (tr *transcript) send(_, state string, fds ...int) error {
	if len(fds) > 0 {
		state += fmt.Sprintf(" +%d", len(fds))
	}
	tr.said = append(tr.said, strings.ReplaceAll(state, "\n", " "))
	return tr.err
}

// take returns what was said since the last call.
func (tr *transcript) take() []string {
	said := tr.said
	tr.said = nil
	return said
}

func testUpstream(t *testing.T, fdstore string) (*upstream, *transcript, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	env := map[string]string{"NOTIFY_SOCKET": "@nobody", "FDSTORE": fdstore}
	u := newUpstream(func(name string) string { return env[name] }, "1.2.3", zap.New(core))
	tr := &transcript{}
	u.send = tr.send
	return u, tr, logs
}

// The words of one master after the other, and what the manager above makes of them.
func TestUpstream_PassesOnWhatHasChanged(t *testing.T) {
	u, tr, _ := testUpstream(t, "")
	status := func(detail string) string {
		return fmt.Sprintf("STATUS=gapless 1.2.3, pid %d: %s", os.Getpid(), detail)
	}
	const clock = `RELOADING=1 MONOTONIC_USEC=[0-9]{4,} `
	for _, step := range []struct {
		name string
		act  func()
		want []string // regular expressions but for the status
	}{
		{"a start", func() { u.follow(word{status: "starting"}) }, []string{status("starting")}},
		{"nothing new", func() { u.follow(word{status: "starting"}) }, nil},
		{"an upgrade before anything serves is none", func() { u.follow(word{status: "starting", reloading: true}) }, nil},
		{"ready", func() { u.follow(word{status: "serving", ready: true}) },
			[]string{fmt.Sprintf("READY=1 MAINPID=%d ", os.Getpid()) + status("serving")}},
		{"still ready", func() { u.follow(word{status: "serving", ready: true}) }, nil},
		{"an upgrade", func() { u.follow(word{status: "upgrading", ready: true, reloading: true}) }, []string{clock + status("upgrading")}},
		{"on its way", func() { u.follow(word{status: "upgrading more", ready: true, reloading: true}) }, []string{status("upgrading more")}},
		{"its end, with the same status", func() { u.follow(word{status: "upgrading more", ready: true}) }, []string{"READY=1 " + status("upgrading more")}},
		{"a dead master", func() { u.follow(word{status: "no master is in charge"}) }, []string{status("no master is in charge")}},
		{"its heir", func() { u.follow(word{status: "serving", ready: true}) }, []string{status("serving")}},
		{"patience", func() { u.extend("15000000") }, []string{"EXTEND_TIMEOUT_USEC=15000000"}},
		{"nonsense", func() { u.extend(""); u.extend("0"); u.extend("-1"); u.extend("1\nREADY=1"); u.extend("soon") }, nil},
		{"a reload", func() { u.follow(word{status: "reloading", ready: true, reloading: true}) }, []string{clock + status("reloading")}},
		{"a stop meanwhile", func() { u.stop() }, []string{"STOPPING=1"}},
		{"once", func() { u.stop(); u.fail("stopping") }, []string{status("stopping")}},
		{"nothing is ready any more", func() { u.follow(word{status: "drained", ready: true}) }, []string{status("drained")}},
	} {
		step.act()
		got := tr.take()
		ok := len(got) == len(step.want)
		for i := 0; ok && i < len(got); i++ {
			ok = regexp.MustCompile("^" + step.want[i] + "$").MatchString(got[i])
		}
		if !ok {
			t.Errorf("%s: told %q, want %q", step.name, got, step.want)
		}
	}
}

func TestUpstream_SaysOnceThatNobodyListens(t *testing.T) {
	u, tr, logs := testUpstream(t, "")
	tr.err = errors.New("no")
	u.follow(word{status: "a"})
	u.follow(word{status: "b"})
	tr.err = nil
	u.follow(word{status: "c"})
	tr.err = errors.New("no")
	u.follow(word{status: "d"})
	if n := logs.FilterMessage("The service manager does not listen").Len(); n != 2 {
		t.Errorf("said %d times", n)
	}
}

func TestUpstream_WithoutAManager(t *testing.T) {
	u := newUpstream(func(name string) string { return map[string]string{"FDSTORE": "9"}[name] }, "1", zap.NewNop())
	u.send = func(string, string, ...int) error { t.Error("told"); return nil }
	u.follow(word{status: "serving", ready: true})
	u.extend("1")
	u.stop()
	if u.vault.capacity != 0 {
		t.Error("nobody is there to keep anything")
	}
}

// What is kept above follows the store, in the order in which the lanes were opened, and within what the manager takes.
func TestVault_KeepsAPartWithoutGaps(t *testing.T) {
	const above = "FDSTORE=1 FDPOLL=0 FDNAME=gapless/"
	remove := func(names ...string) (all []string) {
		for _, n := range names {
			all = append(all, "FDSTOREREMOVE=1 FDNAME=gapless/"+n)
		}
		return all
	}
	u, tr, logs := testUpstream(t, "10")
	v := &u.vault
	s := newStore()
	put := func(name string, owner int) {
		t.Helper()
		fd := open(t)
		if err := s.put(name, owner, []int{fd}, true); err != nil {
			t.Fatal(err)
		}
		if lane, ok := strings.CutPrefix(name, lanePrefix); ok {
			v.put(lane, []int{fd})
		}
	}
	t.Cleanup(func() { s.forget(1); s.forget(2) })
	v.found("http", open(t))                // of a socket unit
	v.found("gapless/lane/gone#0", open(t)) // of an earlier run, like its ledger
	v.found("gapless/ledger/41-0", open(t))
	for _, lane := range []string{"web#10", "web#2", "api#0"} {
		put(lanePrefix+lane, 1)
	}
	put(ledgerName+"0", 1)
	put(ledgerName+"1", 1)
	if got := tr.take(); got != nil {
		t.Errorf("before anything serves: %q", got)
	}
	v.charge(s, 1)
	want := append([]string{above + "lane/api#0 +1", above + "lane/web#2 +1", above + "lane/web#10 +1", above + "ledger/42-0 +1", above + "ledger/42-1 +1"},
		remove("lane/gone#0", "ledger/41-0")...)
	if got := tr.take(); !slices.Equal(got, want) {
		t.Errorf("at first %q, want %q", got, want)
	}
	put(lanePrefix+"web#11", 1)
	put(lanePrefix+"web#12", 1)
	put(lanePrefix+"web#13", 1)
	if got, want := tr.take(), []string{above + "lane/web#11 +1"}; !slices.Equal(got, want) || logs.FilterMessageSnippet("FileDescriptorStoreMax").Len() != 1 {
		t.Errorf("near the end %q, want %q; log %v", got, want, logs.All())
	}
	put(ledgerName+"0", 2)
	put(ledgerName+"1", 2)
	v.charge(s, 2)
	want = append([]string{above + "ledger/43-0 +1", above + "ledger/43-1 +1"}, remove("ledger/42-0", "ledger/42-1")...)
	if got := tr.take(); !slices.Equal(got, want) {
		t.Errorf("for the next master %q, want %q", got, want)
	}
	v.drop("api#0")
	v.drop("api#0")
	v.drop("nobody#0")
	if got := tr.take(); !slices.Equal(got, remove("lane/api#0")) {
		t.Errorf("dropped %q", got)
	}
	u.stop()
	u.stop()
	put(lanePrefix+"web#14", 1)
	v.charge(s, 1)
	if got, want := tr.take(), append([]string{"STOPPING=1"}, remove("lane/web#10", "lane/web#11", "lane/web#2", "ledger/43-0", "ledger/43-1")...); !slices.Equal(got, want) {
		t.Errorf("at the end %q, want %q", got, want)
	}
}

// open returns a descriptor of a file of its own, which stays open until the test ends unless somebody closes it.
func open(t *testing.T) int {
	t.Helper()
	f, err := anonymousFile("test")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := dupBeyond(f, 3)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// The watchdog's beat comes at half of its span while all is well, and not otherwise.
func TestWatchdog_BeatsWhileAllIsWell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const span = 10 * time.Second
		began := time.Now()
		var mu sync.Mutex
		var beats []time.Duration
		answer := func(context.Context) bool { return true }
		healthy := func(ctx context.Context) bool {
			mu.Lock()
			now := answer
			mu.Unlock()
			return now(ctx)
		}
		w := watchdog{span: span, healthy: healthy, beat: func() {
			mu.Lock()
			defer mu.Unlock()
			beats = append(beats, time.Since(began))
		}}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.run(ctx) }()
		pass := func(d time.Duration, says func(context.Context) bool) []time.Duration {
			mu.Lock()
			beats, answer = nil, says
			mu.Unlock()
			<-time.After(d)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return beats
		}
		well := answer
		if got := pass(12*time.Second, well); !slices.Equal(got, []time.Duration{5 * time.Second, 10 * time.Second}) {
			t.Errorf("while all is well: %v", got)
		}
		without := func(context.Context) bool { return false } // a worker that is ready
		if got := pass(20*time.Second, without); len(got) != 0 {
			t.Errorf("without a worker: %v", got)
		}
		hangs := func(ctx context.Context) bool { <-ctx.Done(); return false }
		if got := pass(20*time.Second, hangs); len(got) != 0 {
			t.Errorf("without an answer: %v", got)
		}
		// From then on it comes as often as before, and the first within the span after a last one.
		if got := pass(11*time.Second, well); len(got) < 2 || got[0] > 52*time.Second+span/4 {
			t.Errorf("when it is well again: %v", got)
		}
		asked := 0
		once := func(context.Context) bool { asked++; return asked != 2 }
		got := pass(3*span, once)
		if len(got) < 2 {
			t.Fatalf("with one bad moment: %v", got)
		}
		for i := range got[1:] {
			if got[i+1]-got[i] > 7*span/8 {
				t.Errorf("with one bad moment: %v", got)
			}
		}
		stop()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// While something is under way patience is asked for at once and then regularly; the status is told when it changes.
func TestHerald_AsksForPatienceWhileBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		h := newHerald()
		h.tell = func(state string) error { told = append(told, strings.ReplaceAll(state, "\n", " ")); return nil }
		began := time.Now()
		for busy := true; ; busy = time.Since(began) < 12*time.Second {
			h.extend(busy)
			if !busy {
				break
			}
			<-tickOf(h.patience)
			_ = h.tell(extension())
		}
		if want := slices.Repeat([]string{"EXTEND_TIMEOUT_USEC=15000000"}, 4); !slices.Equal(told, want) || tickOf(h.patience) != nil {
			t.Errorf("told %q in %v", told, time.Since(began))
		}
		if extendBy < 3*extendEvery {
			t.Error("two messages that are late would end in a kill")
		}
	})
}

func TestOneLine(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"plain", "worker 1 is gone", "worker 1 is gone"},
		{"lines", "a\nb\tc\r\nd", "a b c  d"},
		{"escapes", "a\x1b[31mb\u200ec", "a[31mbc"},
		{"not UTF-8", "a\xffb", "a\ufffdb"},
		{"long", strings.Repeat("x", 50), strings.Repeat("x", 17) + "..."},
		{"cut within a letter", strings.Repeat("ä", 50), strings.Repeat("ä", 8) + "..."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := oneLine(tc.text, 20); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestMasterEnviron_KeepsTheManagerAboveToItself(t *testing.T) {
	environ := []string{"A=1", "NOTIFY_SOCKET=/run/systemd/notify", "WATCHDOG_USEC=1", "WATCHDOG_PID=1", "LISTEN_FDS=2", "LISTEN_PID=1", "LISTEN_FDNAMES=a:b",
		"LISTEN_PIDFDID=7", "FDSTORE=5", "GAPLESS_KEPT=1", "INVOCATION_ID=kept", "JOURNAL_STREAM=kept", "GAPLESS_ROLE=x"}
	want := []string{"A=1", "INVOCATION_ID=kept", "JOURNAL_STREAM=kept", "NOTIFY_SOCKET=@mine", "GAPLESS_LINK_FD=5", "GAPLESS_ROLE=master",
		fmt.Sprintf("%s=%d", parentVariable, os.Getpid())}
	if got := masterEnviron(environ, "@mine", 5); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
