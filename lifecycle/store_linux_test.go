package lifecycle

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// memories returns n of them, and a check of which are still open.
func memories(t *testing.T, n int) (fds []int, open func() int) {
	t.Helper()
	before := make(map[int]uint64)
	for range n {
		fd, err := unix.MemfdCreate("entry", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			t.Fatal(err)
		}
		before[fd] = st.Ino
		fds = append(fds, fd)
	}
	return fds, func() (count int) {
		for fd, inode := range before {
			var st unix.Stat_t
			if unix.Fstat(fd, &st) == nil && st.Ino == inode {
				count++
			}
		}
		return count
	}
}

func entriesOf(m manifest) (all []string) {
	for _, e := range m.Entries {
		all = append(all, e.Name)
	}
	return all
}

func TestStore_BelongsToWhoeverIsInCharge(t *testing.T) {
	const first, second = 11, 12
	s := newStore()
	put := func(name string, owner, n int) func() int {
		t.Helper()
		fds, open := memories(t, n)
		if err := s.put(name, owner, fds, false); err != nil {
			t.Fatal(err)
		}
		return open
	}
	lane := put("lane/web#0", first, 1)
	worker := put("worker/1.0.100", first, 4)
	ledger := put("own/ledger-0", first, 1)
	if again := put("lane/web#0", second, 1); again() != 0 || lane() != 1 {
		t.Error("a starting master has replaced what the one in charge stored")
	}
	if now := put("worker/1.0.100", first, 4); now() != 4 || worker() != 0 {
		t.Error("an owner has not replaced its own entry")
	}
	private := put("own/ledger-0", second, 1)
	if ledger() != 1 || private() != 1 {
		t.Error("private entries of one name have met")
	}
	s.remove("lane/web#0", second, false)
	if lane() != 1 {
		t.Error("a starting master has removed what is not its own")
	}
	s.inherit(first, second)
	if m, fds := s.contents(second); !slices.Equal(entriesOf(m), []string{"lane/web#0", "own/ledger-0", "worker/1.0.100"}) || len(fds) != 6 {
		t.Errorf("the heir finds %v", entriesOf(m))
	}
	if ledger() != 0 || private() != 1 {
		t.Error("what was private to the one before is still there, or the heir's is not")
	}
	s.remove("worker/1.0.100", second, true)
	s.forget(second)
	if len(s.entries) != 0 || lane() != 0 || private() != 0 {
		t.Errorf("%d entries are left", len(s.entries))
	}
}

func TestStore_RefusesAndCloses(t *testing.T) {
	for _, tt := range []struct {
		name, entry string
		fds         int
	}{
		{"no name", "", 1},
		{"a colon", "a:b", 1},
		{"too long", strings.Repeat("x", maxStoreName+1), 1},
		{"nothing to keep", "lane/web#0", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore()
			fds, open := memories(t, tt.fds)
			if err := s.put(tt.entry, 1, fds, false); err == nil || open() != 0 || len(s.entries) != 0 {
				t.Errorf("error %v, %d descriptors left, %d entries", err, open(), len(s.entries))
			}
		})
	}
}

func TestLedger_IsReadAsLastWritten(t *testing.T) {
	l, err := newLedgerFiles()
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	if _, err := readLedger(l.files[:]); !errors.Is(err, errNoLedger) {
		t.Errorf("nothing was written: %v", err)
	}
	// Shorter after longer: what is left of the longer one does not count.
	for next, command := range []string{"a", strings.Repeat("b", 9000), "c", "d"} {
		if err := l.write(ledger{Version: ledgerVersion, Next: next, Recipe: recipeRecord{Path: command}}); err != nil {
			t.Fatal(err)
		}
		got, err := readLedger(l.files[:])
		if err != nil || got.Next != next || got.Recipe.Path != command {
			t.Fatalf("version %d: %v, %v", next, got.Next, err)
		}
	}
	// The writer was killed in the middle of the next version, or the memory is damaged.
	for _, damage := range []struct {
		name string
		at   int64
		data string
	}{{"in the text", ledgerHead + 3, "x"}, {"in the head", 2, "x"}, {"in the length", 8, "\x00\xff"}} {
		if _, err := l.files[l.number%ledgerCount].WriteAt([]byte(damage.data), damage.at); err != nil {
			t.Fatal(err)
		}
		if got, err := readLedger(l.files[:]); err != nil || got.Next != 2 {
			t.Errorf("damaged %s: version %d, %v", damage.name, got.Next, err)
		}
	}
}

func FuzzReadLedger(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00{}"))
	f.Fuzz(func(t *testing.T, page []byte) {
		file, err := anonymousFile("fuzz")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := file.Write(page); err != nil {
			t.Fatal(err)
		}
		_, _ = readLedger([]*os.File{file})
	})
}

func TestRestartPause(t *testing.T) {
	for _, tt := range []struct {
		n        int
		from, to time.Duration
	}{
		{1, 0, 0}, {2, 90 * time.Millisecond, 100 * time.Millisecond}, {3, 180 * time.Millisecond, 200 * time.Millisecond},
		{10, 23 * time.Second, 26 * time.Second}, {11, 27 * time.Second, 30 * time.Second}, {1000, 27 * time.Second, 30 * time.Second},
	} {
		for _, random := range []float64{0, 0.5, 0.999} {
			if d := restartPause(tt.n, random); d < tt.from || d > tt.to {
				t.Errorf("start %d in a row: %v, want %v to %v", tt.n, d, tt.from, tt.to)
			}
		}
	}
}

// A worker that a starting master has stored becomes the one in charge's when that stores it, too: it does not go with the
// starting master, and is not ended with what that has left.
func TestStore_TheOneInChargeTakesOver(t *testing.T) {
	const charge, starting = 11, 12
	s := newStore()
	put := func(name string, owner, n int, inCharge bool) func() int {
		t.Helper()
		fds, open := memories(t, n)
		if err := s.put(name, owner, fds, inCharge); err != nil {
			t.Fatal(err)
		}
		return open
	}
	first := put("worker/2.0.200", starting, 2, false)
	other := put("worker/2.1.201", starting, 2, false)
	private := put("own/release", starting, 1, false)
	taken := put("worker/2.0.200", charge, 2, true)
	if first() != 0 || taken() != 2 {
		t.Error("the entry was not replaced")
	}
	put("worker/1.0.100", charge, 2, true)
	if again := put("worker/2.0.200", starting, 2, false); again() != 0 || taken() != 2 {
		t.Error("the starting master has taken it back")
	}
	s.remove("worker/2.0.200", starting, false)
	s.forget(starting)
	if other() != 0 || private() != 0 || taken() != 2 {
		t.Error("what was taken over has gone, or what was not has stayed")
	}
	pids := s.workers(starting)
	slices.Sort(pids)
	if !slices.Equal(pids, []int{100, 200}) {
		t.Errorf("spared are %v", pids)
	}
	if m, fds := s.contents(charge); !slices.Equal(entriesOf(m), []string{"worker/1.0.100", "worker/2.0.200"}) || len(fds) != 4 {
		t.Errorf("whoever takes its place finds %v with %d descriptors", entriesOf(m), len(fds))
	}
	for _, name := range []string{"worker/1.0.100", "worker/2.0.200"} {
		s.remove(name, charge, true)
	}
	if taken() != 0 {
		t.Error("a removed entry is open")
	}
}
