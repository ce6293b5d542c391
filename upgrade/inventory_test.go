package upgrade

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestClaim_ServesEachKindOfAddress(t *testing.T) {
	for _, tc := range []struct {
		name, addr string
		mode       Mode
		want       Mode
	}{
		{"IPv4 steered", "127.0.0.1:0", ModeSteered, ModeSteered},
		{"IPv4 shared", "127.0.0.1:0", ModeShared, ModeShared},
		{"IPv4 plain", "127.0.0.1:0", ModePlain, ModePlain},
		{"IPv6", "[::1]:0", ModeSteered, ModeSteered},
		{"unix", "unix:" + filepath.Join(t.TempDir(), "app.sock"), ModeSteered, ModePlain},
		{"abstract", "unix:@gapless-test-" + t.Name(), ModeSteered, ModePlain},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inv := claim(t, tc.addr, tc.mode)
			lanes, err := inv.Take("web", 2)
			if err != nil {
				t.Fatal(err)
			}
			if want := map[Mode]int{ModeSteered: 2, ModeShared: 1, ModePlain: 1}[tc.want]; len(lanes) != want {
				t.Fatalf("%d lanes, want %d", len(lanes), want)
			}
			if got := inv.Mode("web"); got != tc.want {
				t.Fatalf("mode %s, want %s", got, tc.want)
			}
			if ok, reason := inv.Steerable("web"); ok != (tc.want != ModePlain) || !ok && reason == "" {
				t.Fatalf("steerable %v, reason %q", ok, reason)
			}
			for _, l := range lanes {
				echoName(t, l)
				if err := inv.Switch(map[string]int{l.Name(): 1}, nil); err != nil {
					t.Fatal(err)
				}
			}
			if got := who(t, inv.Addresses()[0]); !strings.HasPrefix(got, "web#") {
				t.Fatalf("answered by %q", got)
			}
		})
	}
}

func TestClaim_DualStackServesBothFamilies(t *testing.T) {
	inv := claim(t, ":0", ModeSteered)
	lanes, err := inv.Take("web", 1)
	if err != nil {
		t.Fatal(err)
	}
	echoName(t, lanes[0])
	_, port, err := net.SplitHostPort(inv.Addresses()[0].Addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		if got := who(t, Address{Network: NetworkTCP, Addr: net.JoinHostPort(host, port)}); got != "web#0" {
			t.Errorf("%s: answered by %q", host, got)
		}
	}
}

func TestClaim_RefusesTakenAddresses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.sock")
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0", ":0", "unix:" + path, "unix:@gapless-test-" + t.Name()} {
		t.Run(addr, func(t *testing.T) {
			first := claim(t, addr, ModeSteered)
			if _, err := first.Take("web", 3); err != nil { // the second must be refused beside siblings, too
				t.Fatal(err)
			}
			taken := first.Addresses()[0]
			second := newTestInventory(t, newFakeFiles(t), InventoryOptions{Owner: func(network, addr string) string {
				if network != taken.Network || addr != taken.Addr {
					t.Errorf("owner of %s %s asked for, want %s %s", network, addr, taken.Network, taken.Addr)
				}
				return "pid 812 (nginx)"
			}})
			err := second.Claim(taken, ModeSteered)
			if !errors.Is(err, ErrAddressInUse) || !strings.Contains(err.Error(), "by pid 812 (nginx)") {
				t.Fatalf("error %v", err)
			}
			if n := len(second.Addresses()); n != 0 {
				t.Fatalf("%d addresses claimed", n)
			}
		})
	}
}

func TestClaim_UnixFiles(t *testing.T) {
	dir := t.TempDir()
	t.Run("a stale file is replaced and removed at the end", func(t *testing.T) {
		path := filepath.Join(dir, "stale.sock")
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		_ = l.Close()
		inv := claim(t, "unix:"+path, ModeSteered)
		echoName(t, inv.Lanes("web")[0])
		if got := who(t, inv.Addresses()[0]); got != "web#0" {
			t.Fatalf("answered by %q", got)
		}
		if err := inv.Unlink(); err != nil {
			t.Fatal(err)
		}
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Fatalf("left: %v", left)
		}
	})
	t.Run("a file of another kind stays", func(t *testing.T) {
		path := filepath.Join(dir, "data")
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		inv := newTestInventory(t, newFakeFiles(t), InventoryOptions{})
		if err := inv.Claim(parse(t, "unix:"+path), ModeSteered); err == nil {
			t.Fatal("claimed")
		}
		if text, _ := os.ReadFile(path); string(text) != "precious" {
			t.Fatal("the file is gone")
		}
	})
	t.Run("a file that another process put there is not removed", func(t *testing.T) {
		path := filepath.Join(dir, "moved.sock")
		inv := claim(t, "unix:"+path, ModeSteered)
		if err := os.Rename(path, path+".old"); err != nil {
			t.Fatal(err)
		}
		other := claim(t, "unix:"+path, ModeSteered)
		if err := inv.Unlink(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Fatal(err)
		}
		if err := other.Unlink(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestClaim_IsIdempotentForTheSamePlace(t *testing.T) {
	inv := claim(t, "127.0.0.1:0", ModeSteered)
	if err := inv.Claim(parse(t, "127.0.0.1:0"), ModeSteered); err != nil {
		t.Fatal(err)
	}
	if err := inv.Claim(parse(t, "127.0.0.2:0"), ModeSteered); !errors.Is(err, ErrBadAddress) {
		t.Fatalf("error %v", err)
	}
}

func TestTake_ReusesFreeLanes(t *testing.T) {
	inv := claim(t, "127.0.0.1:0", ModeSteered)
	first := take(t, inv, 3)
	if err := inv.Release(first[1].Name()); err != nil {
		t.Fatal(err)
	}
	second := take(t, inv, 2)
	if second[0] != first[1] || second[1].Name() != "web#3" {
		t.Fatalf("got %s and %s", second[0].Name(), second[1].Name())
	}
	for i, l := range inv.Lanes("web") {
		if l.Index() != i || l.State() != LaneStarting {
			t.Errorf("%s: index %d, state %s", l.Name(), l.Index(), l.State())
		}
	}
	if _, err := inv.Take("nope", 1); !errors.Is(err, ErrUnknown) {
		t.Errorf("error %v", err)
	}
}

func take(t *testing.T, inv *Inventory, n int) []*Lane {
	t.Helper()
	lanes, err := inv.Take("web", n)
	if err != nil {
		t.Fatal(err)
	}
	return lanes
}

func TestRestore_CarriesLanesAndOrder(t *testing.T) {
	files := newFakeFiles(t)
	old := newTestInventory(t, files, InventoryOptions{})
	if err := old.Claim(parse(t, "127.0.0.1:0"), ModeSteered); err != nil {
		t.Fatal(err)
	}
	lanes := take(t, old, 3)
	if err := old.Switch(map[string]int{"web#0": 1, "web#2": 5}, nil); err != nil {
		t.Fatal(err)
	}
	if err := old.Switch(nil, []string{"web#0"}); err != nil {
		t.Fatal(err)
	}
	// web#3 is opened while the upgrade is under way: its descriptor comes over the successor channel.
	if err := old.Release(take(t, old, 1)[0].Name()); err != nil {
		t.Fatal(err)
	}
	next := newFakeFiles(t)
	for _, l := range lanes {
		if err := next.AddFile("lane/"+l.Name(), l.File()); err != nil {
			t.Fatal(err)
		}
	}
	late, err := dupFile(old.Lane("web#3").File())
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(old.State())
	if err != nil {
		t.Fatal(err)
	}
	var state InventoryState
	if err := json.Unmarshal(text, &state); err != nil {
		t.Fatal(err)
	}
	inv, err := Restore(next, state, map[string]*os.File{"web#3": late}, InventoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = inv.Close() })
	again, err := json.Marshal(inv.State())
	if err != nil {
		t.Fatal(err)
	}
	if string(again) != string(text) {
		t.Fatalf("restored\n%s\nfrom\n%s", again, text)
	}
	if f, _ := next.File("lane/web#3"); f == nil {
		t.Error("the received lane is not kept for the next upgrade")
	} else {
		_ = f.Close()
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	echoName(t, inv.Lane("web#2"))
	for range 20 {
		if got := who(t, inv.Addresses()[0]); got != "web#2" {
			t.Fatalf("answered by %s", got)
		}
	}
	t.Run("another socket in its place is refused", func(t *testing.T) {
		wrong := newFakeFiles(t)
		for _, name := range []string{"web#0", "web#1", "web#2", "web#3"} {
			if err := wrong.AddFile("lane/"+name, lanes[0].File()); err == nil {
				t.Fatal("the closed file was taken")
			}
			if err := wrong.AddFile("lane/"+name, inv.Lane("web#0").File()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Restore(wrong, state, nil, InventoryOptions{}); err == nil {
			t.Fatal("restored")
		}
	})
	t.Run("a missing socket is refused", func(t *testing.T) {
		if _, err := Restore(newFakeFiles(t), state, nil, InventoryOptions{}); err == nil {
			t.Fatal("restored")
		}
	})
}

func TestRestore_KeepsTheSocketFileItsOwn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.sock")
	files := newFakeFiles(t)
	old := newTestInventory(t, files, InventoryOptions{})
	if err := old.Claim(parse(t, "unix:"+path), ModeSteered); err != nil {
		t.Fatal(err)
	}
	if err := old.Switch(map[string]int{take(t, old, 1)[0].Name(): 1}, nil); err != nil {
		t.Fatal(err)
	}
	inv, err := Restore(files, old.State(), nil, InventoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = inv.Close() })
	if err := inv.Claim(parse(t, "unix:"+path), ModeSteered); err != nil {
		t.Fatalf("the same configuration after an upgrade: %v", err)
	}
	if bound, ok := inv.Bound("web"); !ok || bound.Addr != path {
		t.Fatalf("bound to %+v", bound)
	}
	// The next generation's workers get the same lane, whatever the last ones do to it.
	lane := take(t, inv, 4)
	if len(lane) != 1 || lane[0].Name() != "web#0" || lane[0].State() != LaneActive {
		t.Fatalf("lanes %v", lane)
	}
	if err := inv.Switch(map[string]int{"web#0": 1}, []string{"web#0"}); err != nil {
		t.Fatal(err)
	}
	if left, err := inv.Settle(t.Context(), lane[0], os.Getpid(), 1); left != 0 || err != nil {
		t.Fatalf("%d left, %v", left, err)
	}
	if err := inv.Unlink(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the socket file is still there: %v", err)
	}
}
