package upgrade

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// noResolver knows a few hosts, so that no test asks the network.
func noResolver(host string) ([]netip.Addr, error) {
	switch host {
	case "two.test":
		return []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.7")}, nil
	case "six.test":
		return []netip.Addr{netip.MustParseAddr("2001:db8::1")}, nil
	case "none.test":
		return nil, nil
	}
	return nil, errors.New("no such host")
}

func TestParseAddress(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ text, name, network, addr string }{
		{":8000", "", "tcp", "[::]:8000"},
		{"[::]:443", "", "tcp", "[::]:443"},
		{"0.0.0.0:80", "", "tcp", "0.0.0.0:80"},
		{"10.0.0.1:80", "", "tcp", "10.0.0.1:80"},
		{"[::ffff:10.0.0.1]:80", "", "tcp", "10.0.0.1:80"},
		{"[::1]:0", "", "tcp", "[::1]:0"},
		{"[fe80::1%lo]:80", "", "tcp", "[fe80::1%lo]:80"},
		{"[2001:0db8:0::1]:80", "", "tcp", "[2001:db8::1]:80"},
		{"127.0.0.1:080", "", "tcp", "127.0.0.1:80"},
		{"localhost:8000", "", "tcp", "127.0.0.1:8000"},
		{"two.test:1", "", "tcp", "192.0.2.7:1"},
		{"six.test:1", "", "tcp", "[2001:db8::1]:1"},
		{"127.0.0.1:http", "", "tcp", "127.0.0.1:80"},
		{"api=:8001", "api", "tcp", "[::]:8001"},
		{"a.b-c_9=127.0.0.1:1", "a.b-c_9", "tcp", "127.0.0.1:1"},
		{"unix:/run/app.sock", "", "unix", "/run/app.sock"},
		{"unix:/run//x/../app.sock", "", "unix", "/run/app.sock"},
		{"unix:/run/a=b.sock", "", "unix", "/run/a=b.sock"},
		{"unix:app.sock", "", "unix", filepath.Join(here, "app.sock")},
		{"s=unix:@app", "s", "unix", "@app"},
		{"fd:http", "", "fd", "http"},
		{"web=fd:my socket", "web", "fd", "my socket"},
	} {
		t.Run(tc.text, func(t *testing.T) {
			got, err := parseAddress(tc.text, noResolver)
			if want := (Address{tc.name, tc.network, tc.addr}); err != nil || got != want {
				t.Fatalf("got %+v, %v; want %+v", got, err, want)
			}
		})
	}
}

func TestParseAddress_NamesTheMend(t *testing.T) {
	for _, tc := range []struct{ name, text, mend string }{
		{"empty", "", "write :8000"},
		{"only a name", "api=", "write :8000"},
		{"a bare port", "8000", "write :8000"},
		{"a bare host", "127.0.0.1", "write HOST:PORT"},
		{"IPv6 without brackets", "::1:8000", "write [::1]:8000"},
		{"port too large", ":70000", "choose a number"},
		{"negative port", ":-1", "choose a number"},
		{"no port", "127.0.0.1:", "choose a number"},
		{"unknown service", ":nosuchservice", "choose a number"},
		{"unknown host", "nope.test:80", "check the name"},
		{"host without address", "none.test:80", "check the name"},
		{"a path", "/run/app.sock", "write unix:/run/app.sock"},
		{"an abstract name", "@app", "write unix:@app"},
		{"unix without path", "unix:", "write unix:/run/app.sock"},
		{"unix directory", "unix:/run/", "add the name"},
		{"unix path too long", "unix:/" + strings.Repeat("x", 107), "choose a shorter one"},
		{"fd without name", "fd:", "write fd:NAME"},
		{"fd with colon", "fd:a:b", "without a colon"},
		{"bad name", "1a=:80", "begins with a letter"},
		{"empty name", "=:80", "begins with a letter"},
		{"name too long", strings.Repeat("a", 65) + "=:80", "1 to 64"},
		{"line break", "unix:/run/a\nb", "control character"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := parseAddress(tc.text, noResolver)
			if !errors.Is(err, ErrBadAddress) || !strings.Contains(err.Error(), tc.mend) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("error %v", err)
			}
		})
	}
}

func TestNameAddresses(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"one", ":1", "web"},
		{"three", ":1 :2 :3", "web web2 web3"},
		{"given names stay", "api=:1 :2 x=:3 :4", "api web x web2"},
		{"taken defaults are skipped", ":1 web=:2 :3 web3=:4", "web2 web web4 web3"},
		{"port 0 twice", "127.0.0.1:0 127.0.0.1:0", "web web2"},
		{"fd twice", "fd:a fd:a", "web web2"},
		{"same place", ":1 [::]:1", "!given twice"},
		{"same name", "a=:1 a=:2", "!own name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var in []Address
			for text := range strings.FieldsSeq(tc.in) {
				a, err := parseAddress(text, noResolver)
				if err != nil {
					t.Fatal(err)
				}
				in = append(in, a)
			}
			got, err := NameAddresses(in)
			if mend, bad := strings.CutPrefix(tc.want, "!"); bad {
				if !errors.Is(err, ErrBadAddress) || !strings.Contains(err.Error(), mend) {
					t.Fatalf("error %v", err)
				}
				return
			}
			var names []string
			for _, a := range got {
				names = append(names, a.Name)
			}
			if err != nil || strings.Join(names, " ") != tc.want {
				t.Fatalf("got %v, %v", names, err)
			}
		})
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, seed := range []string{":8000", "api=[::1]:80", "unix:/a=b", "unix:@x", "unix:/.", "unix:run/..", "fd:n", "localhost:http", "[fe80::1%lo]:1", "=", "a=b=c:1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := parseAddress(text, noResolver)
		if err != nil {
			if !errors.Is(err, ErrBadAddress) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("error %q", err)
			}
			return
		}
		if a.Name != "" && checkName(a.Name) != "" {
			t.Fatalf("bad name in %+v", a)
		}
		// The canonical form is read back as itself.
		again, err := parseAddress(a.String(), noResolver)
		if err != nil || again.Network != a.Network || again.Addr != a.Addr {
			t.Fatalf("%+v became %+v, %v", a, again, err)
		}
	})
}
