package upgrade

import (
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"
)

// askMarked connects n times by a dialer and counts who answers.
func askMarked(t *testing.T, dialer *net.Dialer, network, addr string, n int) map[string]int {
	t.Helper()
	got := make(map[string]int)
	for range n {
		c, err := dialer.DialContext(t.Context(), network, addr)
		if err != nil {
			t.Fatal(err)
		}
		name, err := io.ReadAll(c)
		_ = c.Close()
		if err != nil {
			t.Fatal(err)
		}
		got[string(name)]++
	}
	return got
}

func only(lane string, n int, got map[string]int) bool { return len(got) == 1 && got[lane] == n }

func TestRules_ReachTheirLanes(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0", ":0"} {
		t.Run(listen, func(t *testing.T) {
			inv := claim(t, listen, ModeSteered)
			for _, l := range take(t, inv, 4) {
				echoName(t, l)
			}
			addr := inv.Addresses()[0]
			knock, network, target, err := inv.KnockDialer("web", 10*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			route, err := inv.PreviewRoute("web")
			if err != nil {
				t.Fatal(err)
			}
			preview := route.Dialer(10 * time.Second)
			check := func(lane string, previewed, knocked string) {
				t.Helper()
				if err := inv.SetKnock("web", lane); err != nil {
					t.Fatal(err)
				}
				if got := askMarked(t, knock, network, target, 10); !only(knocked, 10, got) {
					t.Errorf("knocks answered by %v, want %s", got, knocked)
				}
				if got := askMarked(t, preview, route.Network, route.Addr, 10); !only(previewed, 10, got) {
					t.Errorf("previews answered by %v, want %s", got, previewed)
				}
				if got := who(t, addr); got != "web#0" {
					t.Errorf("answered by %q", got)
				}
			}
			check("web#2", "web#0", "web#2") // before any lane is active, as a first generation's readiness probe
			if err := inv.Switch(map[string]int{"web#0": 1}, nil); err != nil {
				t.Fatal(err)
			}
			check("web#1", "web#0", "web#1")
			if err := inv.SetPreview("web", "web#3"); err != nil {
				t.Fatal(err)
			}
			check("web#1", "web#3", "web#1")
			check("", "web#3", "web#0")
			if err := inv.SetPreview("web"); err != nil {
				t.Fatal(err)
			}
			check("web#2", "web#0", "web#2")
		})
	}
}

// TestSetPreview_FollowsItsLanes: a lane that is released answers no preview any more.
func TestSetPreview_FollowsItsLanes(t *testing.T) {
	inv := claim(t, "127.0.0.1:0", ModeSteered)
	for _, l := range take(t, inv, 4) {
		echoName(t, l)
	}
	if err := inv.Switch(map[string]int{"web#0": 1}, nil); err != nil {
		t.Fatal(err)
	}
	route, err := inv.PreviewRoute("web")
	if err != nil {
		t.Fatal(err)
	}
	expect := func(lanes ...string) {
		t.Helper()
		if got := inv.Preview("web"); !slices.Equal(got, lanes) {
			t.Errorf("previewed: %v, want %v", got, lanes)
		}
		if len(lanes) == 0 {
			lanes = []string{"web#0"}
		}
		got := askMarked(t, route.Dialer(10*time.Second), route.Network, route.Addr, 60)
		for _, l := range lanes {
			if got[l] == 0 { // 60 tries, at most 3 lanes: one in 2^35 runs
				t.Errorf("%s answered none of 60 previews", l)
			}
			delete(got, l)
		}
		if len(got) > 0 {
			t.Errorf("previews answered by %v as well, want only %v", got, lanes)
		}
	}
	if err := inv.SetPreview("web", "web#1", "web#2", "web#3"); err != nil {
		t.Fatal(err)
	}
	expect("web#1", "web#2", "web#3")
	if err := inv.Switch(map[string]int{"web#2": 5}, nil); err != nil { // a share changes nothing
		t.Fatal(err)
	}
	expect("web#1", "web#2", "web#3")
	if err := inv.Switch(nil, []string{"web#2"}); err != nil {
		t.Fatal(err)
	}
	expect("web#1", "web#2", "web#3")
	if err := inv.Release("web#2"); err != nil {
		t.Fatal(err)
	}
	expect("web#1", "web#3")
	if err := inv.Release("web#1"); err != nil {
		t.Fatal(err)
	}
	expect("web#3")
	if lanes, err := inv.Take("web", 1); err != nil || lanes[0].Name() != "web#1" {
		t.Errorf("took %v, %v; want web#1", lanes, err)
	}
	if err := inv.Release("web#3"); err != nil {
		t.Fatal(err)
	}
	expect()
}

func TestSetPreview_Refuses(t *testing.T) {
	inv := NewInventory(newFakeFiles(t), InventoryOptions{Logger: zap.NewNop()})
	t.Cleanup(func() { _ = inv.Close() })
	for _, a := range []Address{{"web", NetworkTCP, "127.0.0.1:0"}, {"api", NetworkTCP, "127.0.0.1:0"}, {"file", NetworkUnix, t.TempDir() + "/s"}} {
		if err := inv.Claim(a, ModeSteered); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct{ name, address, lane string }{
		{"an unknown address", "none", "web#0"},
		{"an unknown lane", "web", "web#9"},
		{"a lane of another address", "web", "api#0"},
		{"an address that cannot be steered", "file", "file#0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := inv.SetPreview(tc.address, tc.lane); err == nil {
				t.Error("no error from SetPreview")
			}
			if err := inv.SetKnock(tc.address, tc.lane); err == nil {
				t.Error("no error from SetKnock")
			}
		})
	}
	if _, err := inv.PreviewRoute("file"); err == nil {
		t.Error("a route to a unix socket")
	}
}
