//go:build linux

package test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gapless/internal/control"
	"gapless/internal/load"
	"gapless/internal/procfs"

	"golang.org/x/sys/unix"
)

// journals reads which process began which requests.
func journals(t testing.TB, dir string) map[string]int {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	begun := map[string]int{}
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		pid, _ := strconv.Atoi(f.Name())
		for line := range strings.Lines(string(text)) {
			if id, ok := strings.CutPrefix(strings.TrimSpace(line), "begin "); ok {
				begun[id] = pid
			}
		}
	}
	return begun
}

// Workers are killed all the time. Lost is only what a killed one had in hand, and everything else is served.
func TestKill_RandomWorkersUnderLoad(t *testing.T) {
	dir := t.TempDir()
	s := start(t, options{flags: []string{"-w", "4"}, command: role("journal", "E2E_JOURNAL="+dir)})
	rate := requestsPerSecond() / 2
	p := plan{addr: s.addr, every: 200 * time.Millisecond, tail: 2 * time.Second, streams: []load.Stream{
		{Kind: load.KeepAlive, Connections: 32, Rate: rate * 0.8, Method: http.MethodPost, Path: "/?ms=10", Body: 100, Echo: true},
		{Kind: load.NewConn, Connections: 32, Rate: rate * 0.2, Method: http.MethodPost, Path: "/?ms=10", Body: 100, Echo: true},
	}}
	killed := map[int]bool{}
	r := p.under(t, counted(15, 100), func(int) {
		alive := s.workers(1)
		if len(alive) < 2 { // with nobody left to serve nothing is promised but patience
			return
		}
		victim := alive[rand.IntN(len(alive))].PID
		killed[victim] = true
		kill(victim)
	})
	begun := journals(t, dir)
	unread, inHand := 0, 0
	for i := range r {
		if f := r[i].Fault(); f != "" {
			t.Fatalf("the load proves nothing: %s", f)
		}
		for _, f := range r[i].Failures {
			pid, read := begun[f.ID]
			switch {
			case f.Class != load.Reset && f.Class != load.EOF && f.Class != load.Cut:
				t.Errorf("%s %s: %v", f.Class, f.ID, f.Err)
			case read && !killed[pid]:
				t.Errorf("%s %s was lost by worker %d, which was not killed: %v", f.Class, f.ID, pid, f.Err)
			case read:
				inHand++
			default: // it lay in the socket of the one that was killed
				unread++
			}
		}
	}
	t.Logf("%d workers killed; of %d requests %d lost in their hands, and %d that they had not read yet", len(killed), r[0].Requests+r[1].Requests, inHand, unread)
	if len(killed) < 5 || inHand == 0 {
		t.Errorf("%d workers killed, %d requests in their hands: nothing is proved", len(killed), inHand)
	}
	if unread > 2*len(killed) {
		t.Errorf("%d unread requests lost with %d workers", unread, len(killed))
	}
	s.stop()
}

// hangs is the event that tells of a hung worker.
func hangs(pid int) func(event) bool {
	return func(e event) bool { return strings.HasPrefix(e.Msg, "Worker hangs") && e.PID == pid }
}

// A worker that is stopped is replaced, and takes nothing down with it but what it had accepted: the connections that
// wait for it are served by the one that replaces it.
func TestWatchdog_StoppedWorkerIsReplaced(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"--watchdog", "1s"}, command: role("shutdown")})
	victim := s.worker(1, 0)
	halt(t, victim.PID) // and not one connection is accepted by a thread that still runs
	var wg sync.WaitGroup
	errs := make([]error, 24)
	for i := range errs {
		wg.Go(func() { _, errs[i] = tryGet(t, s.addr, "/") })
	}
	s.await("it is found out", hangs(victim.PID))
	wg.Wait()
	lost := 0
	for _, err := range errs {
		if err != nil {
			lost++
			t.Logf("lost: %v", err)
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d connections that waited for a hung worker were lost", lost, len(errs))
	}
	if now := s.worker(1, 0); now.PID == victim.PID {
		t.Error("it was not replaced")
	}
	s.settled(1, 2)
	s.stop()
}

// A worker that no connection waits for is not known to hang, and one that is only slow does not.
func TestWatchdog_PatienceWithTheSlow(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"--watchdog", "500ms"}})
	slow := s.ask("/slow?ms=2000")
	s.inFlight(slow)
	slow.answer(t)
	if n := len(s.out.find(func(e event) bool { return strings.HasPrefix(e.Msg, "Worker hangs") })); n > 0 {
		t.Errorf("%d workers were ended as hung", n)
	}
	s.stop()
}

// A worker that has sent WATCHDOG=1 and falls silent is ended, by ABRT first: it prints its stacks.
func TestWatchdog_SilentWorkerIsReplaced(t *testing.T) {
	t.Parallel()
	gate := filepath.Join(t.TempDir(), "silent")
	s := start(t, options{flags: []string{"--watchdog", "1s", "--ready", "notify"}, command: role("watchdog", "E2E_GATE="+gate, "GOTRACEBACK=all")})
	victim, other := s.worker(1, 1), s.worker(1, 0)
	quiet := time.NewTimer(2500 * time.Millisecond)
	defer quiet.Stop()
	<-quiet.C // that nothing happens takes its time
	if n := len(s.out.find(func(e event) bool { return strings.HasPrefix(e.Msg, "Worker hangs") })); n > 0 {
		t.Fatalf("%d workers that send WATCHDOG=1 were ended as hung", n)
	}
	writeTo(t, gate+"."+strconv.Itoa(victim.PID), "")
	s.await("it is found out", hangs(victim.PID))
	eventually(t, patience, "it has dumped its stacks", func() bool {
		text := s.out.text()
		return strings.Contains(text, "SIGABRT") && strings.Contains(text, "goroutine ")
	})
	eventually(t, patience, "another takes its place", func() bool {
		st := s.status()
		return len(own(st)) == 2 && inState(own(st), "ready") == 2 && own(st)[1].PID != victim.PID
	})
	if now := s.worker(1, 0); now.PID != other.PID {
		t.Error("the other worker was replaced, too")
	}
	s.stop()
}

// A worker that a debugger has stopped is no hung one.
func TestWatchdog_TracedWorkerIsLeftAlone(t *testing.T) {
	t.Parallel()
	runtime.LockOSThread() // a tracer is a thread
	defer runtime.UnlockOSThread()
	s := start(t, options{flags: []string{"--watchdog", "500ms"}, command: role("shutdown")})
	victim := s.worker(1, 0)
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", victim.PID))
	if err != nil {
		t.Fatal(err)
	}
	var attached []int
	detach := func() {
		for _, tid := range attached {
			if err := unix.PtraceDetach(tid); err != nil {
				t.Errorf("detach from %d: %v", tid, err)
			}
		}
		attached = nil
	}
	defer detach()
	for _, th := range threads {
		tid, _ := strconv.Atoi(th.Name())
		if err := unix.PtraceAttach(tid); err != nil {
			t.Fatalf("attach to %d: %v", tid, err)
		}
		if _, err := unix.Wait4(tid, nil, unix.WALL, nil); err != nil {
			t.Fatalf("wait for %d: %v", tid, err)
		}
		attached = append(attached, tid)
	}
	waiting := make([]*later, 12)
	for i := range waiting {
		waiting[i] = s.ask("/")
	}
	long := time.NewTimer(2 * time.Second)
	defer long.Stop()
	<-long.C
	if n := len(s.out.find(hangs(victim.PID))); n > 0 {
		t.Error("it was ended as hung")
	}
	detach()
	for _, w := range waiting {
		w.answer(t)
	}
	if now := s.worker(1, 0); now.PID != victim.PID {
		t.Error("it was replaced")
	}
	s.stop()
}

// A worker that leaks is replaced before it is far above its limit, by one that is ready first.
func TestMemory_LeakingWorkerIsReplaced(t *testing.T) {
	t.Parallel()
	const limit = 160 << 20
	s := start(t, options{flags: []string{"-w", "2", "--max-worker-memory", "160MiB"}, command: role("leaks", "E2E_LEAK="+strconv.Itoa(8<<20), "E2E_LEAK_FIRST="+strconv.Itoa(90<<20))})
	most := map[int]int64{}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			for _, w := range s.workers(1) {
				if m, err := procfs.ReadMemory(w.PID); err == nil {
					most[w.PID] = max(most[w.PID], m.PSS)
				}
			}
		}
	})
	replaced := func() []event { return s.out.find(msg("Worker is replaced")) }
	p := plan{addr: s.addr, streams: postStreams("/", requestsPerSecond()/8)[1:]} // new connections: foreign servers close idle ones
	r := p.under(t, 1, func(int) {
		if !became(2*patience, func() bool { return len(replaced()) >= counted(2, 6) }) {
			t.Errorf("%d workers were replaced", len(replaced()))
		}
	})
	close(stop)
	wg.Wait()
	r.noneLost(t)
	for _, e := range replaced() {
		t.Logf("%d reached %d MiB: %s", e.PID, most[e.PID]>>20, e.Reason)
		if most[e.PID] > limit*12/10 {
			t.Errorf("worker %d reached %d MiB, of %d MiB", e.PID, most[e.PID]>>20, limit>>20)
		}
	}
	s.stop()
}

// Workers that are old enough are replaced one at a time, and nobody notices.
func TestLifetime_WorkersAreReplacedUnnoticed(t *testing.T) {
	t.Parallel()
	s := start(t, options{flags: []string{"-w", "3", "--max-worker-lifetime", "2s"}})
	before := map[int]bool{}
	for _, w := range s.workers(1) {
		before[w.PID] = true
	}
	p := plan{addr: s.addr, streams: postStreams("/echo", requestsPerSecond()/2), tail: time.Second}
	r := p.under(t, 1, func(int) {
		eventually(t, patience, "all have been replaced", func() bool {
			for _, w := range s.workers(1) {
				if before[w.PID] {
					return false
				}
			}
			return len(s.out.find(msg("Worker is replaced"))) >= counted(3, 30)
		})
	})
	r.untouched(t, p)
	if st := s.status(); st.Generations[0].Generation != 1 || st.Workers != 3 {
		t.Errorf("now generation %d with %d workers", st.Generations[0].Generation, st.Workers)
	}
	s.stop()
}

// A release that crashes whenever it has become ready is called degraded, is tried again and again, and is healed by a
// reload of one that is mended. The parent lives through all of it.
func TestCrashLoop_IsDegradedAndHealedByAReload(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	s := start(t, options{command: []string{a.path}})
	a.role("crashes-after-ready")
	s.upgrade(2)
	s.await("the release is called bad", msg("The release looks bad"))
	st := s.becomes("degraded", func(st control.Status) bool { return st.State == control.StateDegraded })
	if !strings.Contains(st.DegradedReason, "exit status 7") && !strings.Contains(st.DegradedReason, "7") {
		t.Errorf("degraded, because %q", st.DegradedReason)
	}
	eventually(t, patience, "it goes on trying", func() bool { return len(s.out.find(msg("Worker died; it is replaced"))) >= 6 })
	a.good()
	s.verb("reload").demand(t, 0)
	st = s.becomes("healed", func(st control.Status) bool {
		return st.State == control.StateServing && inState(own(st), "ready") == 2
	})
	if g := st.Generations[0]; g.Generation != 2 || g.Revision != 2 {
		t.Errorf("now %d.%d serves", g.Generation, g.Revision)
	}
	for range 8 {
		s.get("/").generation(2)
	}
	s.stop()
}

// The same, healed by an upgrade; --probation 0 calls nothing bad.
func TestCrashLoop_IsHealedByAnUpgrade(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	s := start(t, options{command: []string{a.path}, flags: []string{"--probation", "0"}})
	a.role("crashes-after-ready")
	s.upgrade(2)
	eventually(t, patience, "it crashes", func() bool { return len(s.out.find(msg("Worker died; it is replaced"))) >= 4 })
	if n := len(s.out.find(msg("The release looks bad"))); n > 0 {
		t.Error("called bad without a probation")
	}
	a.good()
	s.verb("upgrade").demand(t, 0)
	s.settled(3, 2)
	if st := s.status(); st.State != control.StateServing {
		t.Errorf("%s after the upgrade: %s", st.State, st.DegradedReason)
	}
	s.stop()
}
