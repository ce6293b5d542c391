package upgrade

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

// killed is a gapless that is killed as a whole, once it is.
type killed struct {
	inv   *Inventory
	files *fakeFiles
}

func toBeKilled(t *testing.T, addr Address, lanes int, opts InventoryOptions) killed {
	t.Helper()
	k := killed{files: newFakeFiles(t)}
	k.inv = newTestInventory(t, k.files, opts)
	if err := k.inv.Claim(addr, ModeSteered); err != nil {
		t.Fatal(err)
	}
	if lanes > 1 {
		if _, err := k.inv.Take(addr.Name, lanes); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

// kill closes all that it has, except for what is kept of it: its lanes but for those that are missing.
func (k killed) kill(t *testing.T, state InventoryState, missing ...string) Bequest {
	t.Helper()
	b := Bequest{State: state, Lanes: make(map[string]*os.File)}
	for _, a := range k.inv.Addresses() {
		for _, l := range k.inv.Lanes(a.Name) {
			if slices.Contains(missing, l.Name()) {
				continue
			}
			dup, err := dupFile(l.File())
			if err != nil {
				t.Fatal(err)
			}
			b.Lanes[l.Name()] = dup
		}
	}
	if err := k.inv.Close(); err != nil {
		t.Fatal(err)
	}
	for name, f := range k.files.files {
		_ = f.Close()
		delete(k.files.files, name)
	}
	return b
}

func revive(t *testing.T, b Bequest, addr Address, opts InventoryOptions) *Inventory {
	t.Helper()
	inv, err := Revive(newFakeFiles(t), b, []Address{addr}, ModeSteered, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = inv.Close() })
	return inv
}

// Whoever waits is served by the lane where they wait, and the order of the lanes is the kernel's, also when the state is
// older than the last lanes, or when the last lanes are lost.
func TestRevive_LanesAreInTheKernelsOrder(t *testing.T) {
	for _, tt := range []struct {
		name    string
		late    int      // lanes that are opened after the state was written
		missing []string // in the store
		want    []string
	}{
		{"all of them", 0, nil, []string{"web#0", "web#1", "web#2", "web#3"}},
		{"with later ones", 3, nil, []string{"web#0", "web#1", "web#2", "web#3", "web#4", "web#5", "web#6"}},
		{"without the last", 0, []string{"web#3"}, []string{"web#0", "web#1", "web#2"}},
		{"without the last, which came later", 2, []string{"web#5"}, []string{"web#0", "web#1", "web#2", "web#3", "web#4"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := toBeKilled(t, parse(t, "127.0.0.1:0"), 4, InventoryOptions{})
			addr := k.inv.Addresses()[0]
			if err := k.inv.Switch(map[string]int{"web#1": 60, "web#2": 40}, nil); err != nil {
				t.Fatal(err)
			}
			state := k.inv.State()
			if tt.late > 0 {
				if _, err := k.inv.Take("web", tt.late); err != nil {
					t.Fatal(err)
				}
			}
			var clients []net.Conn
			for range 20 {
				clients = append(clients, dial(t, addr))
			}
			b := k.kill(t, state, tt.missing...)
			clients = append(clients, dial(t, addr)) // nobody is there, and it waits all the same

			inv := revive(t, b, addr, InventoryOptions{})
			var names, active []string
			for _, l := range inv.Lanes("web") {
				names = append(names, l.Name())
				if l.State() == LaneActive {
					active = append(active, l.Name())
				}
				echoName(t, l)
			}
			if !slices.Equal(names, tt.want) || !slices.Equal(active, []string{"web#1", "web#2"}) {
				t.Fatalf("lanes %q, of which are active %q", names, active)
			}
			for _, c := range clients {
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				answer := make([]byte, 16)
				if n, err := c.Read(answer); err != nil || !slices.Contains(active, string(answer[:n])) {
					t.Fatalf("a client that waited was answered %q, %v", answer[:n], err)
				}
			}
			before := active
			for _, l := range inv.Lanes("web") {
				if l.State() == LaneFree {
					if _, err := inv.Take("web", 1); err != nil { // the first that is free
						t.Fatal(err)
					}
				}
				withdraw := slices.DeleteFunc(slices.Clone(before), func(n string) bool { return n == l.Name() })
				if err := inv.Switch(map[string]int{l.Name(): 1}, withdraw); err != nil {
					t.Fatal(err)
				}
				before = []string{l.Name()}
				inv.WaitProgram()
				for range 3 {
					if got := who(t, addr); got != l.Name() {
						t.Fatalf("%s alone gets new connections, and %s answered", l.Name(), got)
					}
				}
			}
		})
	}
}

// What cannot be taken over safely is closed, and the address can be claimed anew.
func TestRevive_LeavesWhatItCannotTrust(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, k killed, addr *Address) Bequest
	}{
		{"a lane is missing in the middle", func(t *testing.T, k killed, _ *Address) Bequest { return k.kill(t, k.inv.State(), "web#1") }},
		{"all lanes are missing", func(t *testing.T, k killed, _ *Address) Bequest {
			return k.kill(t, k.inv.State(), "web#0", "web#1", "web#2")
		}},
		{"another address", func(t *testing.T, k killed, addr *Address) Bequest {
			*addr = parse(t, "127.0.0.2:0")
			return k.kill(t, k.inv.State())
		}},
		{"another name", func(t *testing.T, k killed, addr *Address) Bequest {
			addr.Name = "api"
			return k.kill(t, k.inv.State())
		}},
		{"a lane does not listen", func(t *testing.T, k killed, _ *Address) Bequest {
			err := withFd(k.inv.Lane("web#2").File(), func(fd int) error { return syscall.Shutdown(fd, syscall.SHUT_RDWR) })
			if err != nil {
				t.Fatal(err)
			}
			return k.kill(t, k.inv.State())
		}},
		{"a descriptor is of another socket", func(t *testing.T, k killed, _ *Address) Bequest {
			b := k.kill(t, k.inv.State())
			b.Lanes["web#0"], b.Lanes["web#1"] = b.Lanes["web#1"], b.Lanes["web#0"]
			return b
		}},
		{"no state", func(t *testing.T, k killed, _ *Address) Bequest {
			return k.kill(t, InventoryState{Version: inventoryVersion})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := toBeKilled(t, parse(t, "127.0.0.1:0"), 3, InventoryOptions{})
			addr := k.inv.Addresses()[0]
			b := tt.spoil(t, k, &addr)
			inv := revive(t, b, addr, InventoryOptions{})
			if held := inv.Addresses(); len(held) != 0 {
				t.Fatalf("took over %v", held)
			}
			if err := inv.Claim(addr, ModeSteered); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// One that was killed while it stopped had the kernel refuse new clients.
func TestRevive_LetsClientsInAgain(t *testing.T) {
	k := toBeKilled(t, parse(t, "127.0.0.1:0"), 2, InventoryOptions{})
	addr := k.inv.Addresses()[0]
	if err := k.inv.Switch(map[string]int{"web#0": 1, "web#1": 1}, nil); err != nil {
		t.Fatal(err)
	}
	if err := k.inv.Refuse(); err != nil {
		t.Fatal(err)
	}
	inv := revive(t, k.kill(t, k.inv.State()), addr, InventoryOptions{})
	for _, l := range inv.Lanes("web") {
		echoName(t, l)
	}
	who(t, addr)
}

// A unix socket is taken over as long as its file is the one that leads to it.
func TestRevive_Unix(t *testing.T) {
	for _, removed := range []bool{false, true} {
		addr := parse(t, "unix:"+filepath.Join(t.TempDir(), "sock"))
		k := toBeKilled(t, addr, 1, InventoryOptions{})
		if _, err := k.inv.Take("web", 1); err != nil {
			t.Fatal(err)
		}
		if err := k.inv.Switch(map[string]int{"web#0": 1}, nil); err != nil {
			t.Fatal(err)
		}
		b := k.kill(t, k.inv.State())
		if removed {
			if err := os.Remove(addr.Addr); err != nil {
				t.Fatal(err)
			}
		}
		inv := revive(t, b, addr, InventoryOptions{})
		if held := len(inv.Addresses()) == 1; held == removed {
			t.Fatalf("file removed: %v, taken over: %v", removed, held)
		}
		if err := inv.Claim(addr, ModeSteered); err != nil {
			t.Fatal(err)
		}
		echoName(t, inv.Lanes("web")[0])
		who(t, addr)
	}
}

// Sockets of socket units: the one that the unit has now counts, and what is a lane already is not named as unasked.
func TestRevive_SocketOfASocketUnit(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		unit, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer unit.Close()
		pass := func() *os.File {
			f, err := unit.(*net.TCPListener).File()
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
		addr := parse(t, "fd:http")
		k := toBeKilled(t, addr, 1, InventoryOptions{Activated: map[string][]*os.File{"http": {pass()}}})
		b := k.kill(t, k.inv.State())
		if restarted {
			if unit, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
				t.Fatal(err)
			}
			defer unit.Close()
		}
		spare, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer spare.Close()
		spareFile, err := spare.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		activated := map[string][]*os.File{"http": {pass()}, "spare": {spareFile}}
		inv := revive(t, b, addr, InventoryOptions{Activated: activated})
		if held := len(inv.Addresses()) == 1; held == restarted {
			t.Fatalf("socket unit restarted: %v, taken over: %v", restarted, held)
		}
		if err := inv.Claim(addr, ModeSteered); err != nil {
			t.Fatal(err)
		}
		if bound, _ := inv.Bound(addr.Name); bound.Addr != unit.Addr().String() {
			t.Errorf("serves %v, and the unit has %v", bound, unit.Addr())
		}
		if got := inv.Leave(); !slices.Equal(got, []string{"spare"}) {
			t.Errorf("left %q", got)
		}
	}
}
