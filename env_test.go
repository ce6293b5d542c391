package gapless

import (
	"maps"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestReadEnviron(t *testing.T) {
	none := environ{channel: -1, handoff: -1, tickets: -1}
	for _, tc := range []struct {
		name string
		env  map[string]string
		want func(e *environ)
		left []string
		err  string
	}{
		{"nothing", nil, func(*environ) {}, nil, ""},
		{"all", map[string]string{
			"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "web:admin", "NOTIFY_SOCKET": "@n",
			"GAPLESS_WORKER": "3", "GAPLESS_GENERATION": "4", "GAPLESS_CHANNEL": "5", "GAPLESS_HANDOFF": "6", "GAPLESS_TICKETS": "7",
		}, func(e *environ) {
			*e = environ{3, 4, []string{"web", "admin"}, "@n", 5, 6, 7}
		}, []string{"NOTIFY_SOCKET"}, ""},
		{"names are missing", map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "2"},
			func(e *environ) { e.names = []string{"", ""} }, nil, ""},
		{"for another process", map[string]string{"LISTEN_PID": "8", "LISTEN_FDS": "2"},
			func(*environ) {}, []string{"LISTEN_PID", "LISTEN_FDS"}, ""},
		{"not a number", map[string]string{"GAPLESS_CHANNEL": "moon"}, func(*environ) {}, nil, `GAPLESS_CHANNEL: want a number, got "moon"`},
		{"negative", map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "-1"}, func(*environ) {}, nil, `LISTEN_FDS: want a number, got "-1"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			env := maps.Clone(tc.env)
			got, err := readEnviron(7, func(k string) (string, bool) { v, ok := env[k]; return v, ok },
				func(k string) error { delete(env, k); return nil })
			want := none
			tc.want(&want)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %v, want %q", err, tc.err)
			}
			if len(env) != len(tc.left) {
				t.Errorf("left in the environment: %v, want %v", env, tc.left)
			}
		})
	}
}

func TestPick(t *testing.T) {
	open := func(network, addr string) net.Listener {
		l, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	web, web2, admin := open("tcp", "127.0.0.1:0"), open("tcp", "127.0.0.1:0"), open("tcp", "127.0.0.1:0")
	path := filepath.Join(t.TempDir(), "s")
	sock := open("unix", path)
	_, port, _ := net.SplitHostPort(admin.Addr().String())
	for _, tc := range []struct {
		name, addr string
		want       []net.Listener
	}{
		{"first name, all its sockets", "", []net.Listener{web, web2}},
		{"unknown address", "127.0.0.1:1", []net.Listener{web, web2}},
		{"name", "admin", []net.Listener{admin}},
		{"name and address", "admin=:1", []net.Listener{admin}},
		{"unknown name", "moon=:1", nil},
		{"address", admin.Addr().String(), []net.Listener{admin}},
		{"port", ":" + port, []net.Listener{admin}},
		{"port of another host", "127.0.0.2:" + port, []net.Listener{web, web2}},
		{"unix", "unix:" + path, []net.Listener{sock}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := noEnv(t)
			p.listeners = append(p.listeners, &inherited{Listener: web, name: "web"}, &inherited{Listener: web2, name: "web"},
				&inherited{Listener: admin, name: "admin"}, &inherited{Listener: sock, name: "sock"})
			got, err := p.pick(tc.addr, "")
			if (err == nil) != (tc.want != nil) {
				t.Fatalf("error %v", err)
			}
			if len(got) != len(tc.want) {
				t.Fatalf("got %d listeners, want %d", len(got), len(tc.want))
			}
			for i := range got {
				if got[i].Listener != tc.want[i] {
					t.Errorf("got %v, want %v", got[i].Addr(), tc.want[i].Addr())
				}
			}
			if again, err := p.pick(tc.addr, ""); tc.want != nil && err == nil && again[0] == got[0] {
				t.Error("a listener is given twice")
			}
		})
	}
}

func TestPick_AloneListensItself(t *testing.T) {
	p := noEnv(t)
	ls, err := p.pick("web=127.0.0.1:0", "")
	if err != nil {
		t.Fatal(err)
	}
	defer ls[0].Close()
	if ls[0].name != "web" || ls[0].Addr().Network() != "tcp" {
		t.Errorf("got %q on %v", ls[0].name, ls[0].Addr())
	}
	if _, err := p.pick("nothing", ""); err == nil {
		t.Error("an address without a port was accepted")
	}
}

func TestOrder_Times(t *testing.T) {
	from := time.Unix(1000, 0)
	sec := func(s float64) time.Time { return from.Add(time.Duration(s * float64(time.Second))) }
	for _, tc := range []struct {
		name        string
		o           order
		idle        time.Time
		late, early time.Time
	}{
		{"stop", order{stop: true, deadline: 30 * time.Second, spread: 10 * time.Second}, sec(1), sec(0), sec(1)},
		{"stop, no deadline", order{stop: true}, sec(1), sec(0), sec(0)},
		{"stop, short deadline", order{stop: true, deadline: time.Second}, sec(0.75), sec(0), sec(0)},
		{"upgrade", order{deadline: 30 * time.Second, spread: 10 * time.Second}, sec(28), sec(28), sec(18)},
		{"upgrade, short deadline", order{deadline: 4 * time.Second, spread: 10 * time.Second}, sec(3), sec(3), sec(0)},
		{"upgrade, no deadline", order{}, time.Time{}, time.Time{}, time.Time{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.o.from = from
			if got := tc.o.idleUntil(); !got.Equal(tc.idle) {
				t.Errorf("idle connections are waited for until %v, want %v", got, tc.idle)
			}
			if late, early := tc.o.lingerUntil(0), tc.o.lingerUntil(1); !late.Equal(tc.late) || !early.Equal(tc.early) {
				t.Errorf("lingering ends from %v to %v, want %v to %v", early, late, tc.early, tc.late)
			}
		})
	}
}
