package upgrade

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"gapless/internal/testwait"
)

// The states of connections in made-up readings.
const (
	established = 1
	closeWait   = 8
	halfOpen    = 3
)

func conn(client uint16, state uint8, inode uint32, received uint64, unread uint32) connection {
	local := netip.MustParseAddrPort("127.0.0.1:8000")
	return connection{local, netip.AddrPortFrom(local.Addr(), client), state, inode, unread, received}
}

func TestSettling_CountsWhatThisWorkerHasNotRead(t *testing.T) {
	type step struct {
		connections []connection
		queue, left int
	}
	const ours, theirs = 7, 9
	for _, tc := range []struct {
		name    string
		unknown bool
		steps   []step
	}{
		{"nothing", false, []step{{nil, 0, 0}}},
		{"an idle connection that was served", false, []step{{[]connection{conn(1, established, ours, 80, 0)}, 0, 0}}},
		{"half-open until it is gone", false, []step{
			{[]connection{conn(1, halfOpen, 0, 0, 0)}, 0, 1},
			{[]connection{conn(1, halfOpen, 0, 0, 0)}, 0, 1},
			{nil, 0, 0},
		}},
		{"from half-open to read", false, []step{
			{[]connection{conn(1, halfOpen, 0, 0, 0)}, 0, 1},
			{[]connection{conn(1, established, 0, 0, 0)}, 1, 1},
			{[]connection{conn(1, established, ours, 0, 0)}, 0, 1},
			{[]connection{conn(1, established, ours, 80, 80)}, 0, 1},
			{[]connection{conn(1, established, ours, 80, 0)}, 0, 0},
		}},
		{"half-open, then queued elsewhere", false, []step{
			{[]connection{conn(1, halfOpen, 0, 0, 0)}, 0, 1},
			{[]connection{conn(1, established, 0, 0, 0)}, 0, 1}, // this lane's queue may have been read before it came
			{[]connection{conn(1, established, 0, 0, 0)}, 0, 0},
		}},
		{"queued elsewhere at the start", false, []step{
			{[]connection{conn(1, established, 0, 80, 80)}, 0, 1},
			{[]connection{conn(1, established, 0, 80, 80)}, 0, 1},
			{[]connection{conn(1, established, 0, 80, 80)}, 0, 0},
		}},
		{"queued here", false, []step{
			{[]connection{conn(1, established, 0, 80, 80)}, 1, 1},
			{[]connection{conn(1, established, 0, 80, 80)}, 1, 1},
			{[]connection{conn(1, established, 0, 80, 80)}, 1, 1},
			{[]connection{conn(1, established, ours, 80, 80)}, 0, 1},
			{[]connection{conn(1, established, ours, 80, 0)}, 0, 0},
		}},
		{"accepted by another process", false, []step{
			{[]connection{conn(1, established, theirs, 0, 0)}, 0, 1},
			{[]connection{conn(1, established, theirs, 0, 0)}, 0, 0},
		}},
		{"seen at one worker process only the second time", false, []step{
			{[]connection{conn(1, established, theirs, 0, 0)}, 0, 1},
			{[]connection{conn(1, established, ours, 0, 0)}, 0, 1},
			{[]connection{conn(1, established, theirs, 0, 0)}, 0, 1},
			{[]connection{conn(1, established, ours, 9, 0)}, 0, 0},
		}},
		{"the worker's descriptors are unknown", true, []step{
			{[]connection{conn(1, established, theirs, 0, 0), conn(2, established, theirs, 80, 0)}, 0, 1},
			{[]connection{conn(1, established, theirs, 0, 0)}, 0, 1},
			{[]connection{conn(1, established, theirs, 5, 0)}, 0, 0},
		}},
		{"what comes later does not count", false, []step{
			{[]connection{conn(1, established, ours, 0, 0)}, 0, 1},
			{[]connection{conn(1, established, ours, 5, 0), conn(2, established, ours, 0, 0), conn(3, halfOpen, 0, 0, 0)}, 0, 0},
		}},
		{"a long upload needs only what had come", false, []step{
			{[]connection{conn(1, established, ours, 1000, 400)}, 0, 1},
			{[]connection{conn(1, established, ours, 1900, 1000)}, 0, 1},
			{[]connection{conn(1, established, ours, 5000, 3000)}, 0, 0},
		}},
		{"a client that has gone silently leaves the queue only when accepted", false, []step{
			{nil, 2, 2},
			{nil, 1, 1},
			{nil, 0, 0},
		}},
		{"closed by the client before a word", false, []step{
			{[]connection{conn(1, closeWait, ours, 1, 1)}, 0, 1},
			{[]connection{conn(1, closeWait, ours, 1, 0)}, 0, 0},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSettling()
			held := func() (map[uint32]bool, bool) { return map[uint32]bool{ours: true}, !tc.unknown }
			for i, step := range tc.steps {
				if left := s.observe(step.connections, held, step.queue); left != step.left {
					t.Fatalf("reading %d: %d left, want %d", i, left, step.left)
				}
			}
		})
	}
}

// scriptedKernel answers from a function of time.
type scriptedKernel struct {
	took  time.Duration
	open  func() []connection
	err   error
	count int
}

func (k *scriptedKernel) connections() ([]connection, error) {
	k.count++
	<-time.After(k.took) // inside a synctest bubble
	return k.open(), k.err
}
func (k *scriptedKernel) held() (map[uint32]bool, bool) { return map[uint32]bool{7: true}, true }
func (k *scriptedKernel) queue() (int, error)           { return 0, nil }

func TestSettle_WaitsNoLongerThanNeededOrAllowed(t *testing.T) {
	silentUntil := func(d time.Duration) func() func() []connection {
		return func() func() []connection {
			began := time.Now()
			return func() []connection {
				if time.Since(began) < d {
					return []connection{conn(1, established, 7, 0, 0)}
				}
				return []connection{conn(1, established, 7, 80, 0)}
			}
		}
	}
	refused := errors.New("refused")
	for _, tc := range []struct {
		name          string
		open          func() func() []connection
		took, ceiling time.Duration
		left          int
		least, most   time.Duration
		err           error
	}{
		{"nothing to wait for", silentUntil(0), 0, time.Second, 0, 0, 0, nil},
		{"read after 200 ms", silentUntil(200 * time.Millisecond), time.Millisecond, time.Second, 0, 200 * time.Millisecond, 210 * time.Millisecond, nil},
		{"silent for ever", silentUntil(time.Hour), time.Millisecond, 2 * time.Second, 1, 2 * time.Second, 2010 * time.Millisecond, nil},
		{"no ceiling only counts", silentUntil(time.Hour), 0, 0, 1, 0, 0, nil},
		{"slow readings are made less often", silentUntil(time.Second), 50 * time.Millisecond, 2 * time.Second, 0, time.Second, 1200 * time.Millisecond, nil},
		{"the kernel refuses", silentUntil(time.Hour), 0, time.Second, 0, 0, 0, refused},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				kernel := &scriptedKernel{took: tc.took, open: tc.open(), err: tc.err}
				began := time.Now()
				left, err := settle(t.Context(), kernel, tc.ceiling)
				took := time.Since(began)
				if left != tc.left || !errors.Is(err, tc.err) || took < tc.least || took > tc.most {
					t.Fatalf("%d left after %s, %v; want %d after %s to %s", left, took, err, tc.left, tc.least, tc.most)
				}
			})
		})
	}
	t.Run("a cancelled context ends it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			left, err := settle(ctx, &scriptedKernel{open: silentUntil(time.Hour)()}, time.Minute)
			if left != 1 || !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("%d left, %v", left, err)
			}
		})
	})
}

func TestDump_ShowsConnectionsAsTheyAre(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		t.Run(addr, func(t *testing.T) {
			inv := claim(t, addr, ModeSteered)
			lane := take(t, inv, 1)[0]
			kernel, err := newSettleKernel(lane, 0)
			if err != nil {
				t.Fatal(err)
			}
			find := func(local string) (connection, bool) {
				all, err := kernel.connections()
				if err != nil {
					t.Fatal(err)
				}
				i := slices.IndexFunc(all, func(c connection) bool { return c.remote.String() == local })
				if i < 0 {
					return connection{}, false
				}
				return all[i], true
			}
			client := dial(t, inv.Addresses()[0])
			local := client.LocalAddr().String()
			testwait.Until(t, "it is established", func() bool { c, ok := find(local); return ok && c.state == established })
			if c, _ := find(local); c.inode != 0 || c.received != 0 {
				t.Fatalf("before accept: %+v", c)
			}
			if n, err := kernel.queue(); n != 1 || err != nil {
				t.Fatalf("queue %d, %v", n, err)
			}
			if _, err := client.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			testwait.Until(t, "its bytes are there", func() bool { c, _ := find(local); return c.received == 5 && c.unread == 5 })
			server, err := listenOnLane(t, lane).Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = server.Close() }()
			if c, _ := find(local); c.inode == 0 {
				t.Fatalf("after accept: %+v", c)
			}
			if _, err := server.Read(make([]byte, 5)); err != nil {
				t.Fatal(err)
			}
			if c, _ := find(local); c.read() != 5 || c.unread != 0 {
				t.Fatalf("after read: %+v", c)
			}
		})
	}
}
