package upgrade

import (
	"errors"
	"strings"
	"testing"
)

func TestUnchanged(t *testing.T) {
	t.Parallel()
	web := Address{Name: "web", Network: NetworkTCP, Addr: "127.0.0.1:8000"}
	sock := Address{Name: "sock", Network: NetworkUnix, Addr: "/run/a.sock"}
	for _, tt := range []struct {
		name       string
		configured []Address
		held       []Address
		want       string // in the error; "" for none
	}{
		{name: "the same", configured: []Address{web, sock}, held: []Address{web, sock}},
		{name: "another order", configured: []Address{sock, web}, held: []Address{web, sock}},
		{name: "an older master tells none", configured: []Address{web}},
		{name: "a port of the kernel's choice", configured: []Address{{Name: "web", Network: NetworkTCP, Addr: "127.0.0.1:0"}}, held: []Address{web}},
		{name: "one that is not served any more", configured: []Address{web}, held: []Address{web, sock}},
		{name: "a directory that has moved", configured: []Address{{Name: "sock", Network: NetworkUnix, Addr: "/srv/41/a.sock"}}, held: []Address{sock}},
		{name: "another port", configured: []Address{{Name: "web", Network: NetworkTCP, Addr: "127.0.0.1:8001"}}, held: []Address{web},
			want: `"web" is 127.0.0.1:8000 and cannot become 127.0.0.1:8001 while gapless runs: restart it`},
		{name: "another host", configured: []Address{{Name: "web", Network: NetworkTCP, Addr: "[::]:8000"}}, held: []Address{web}, want: "cannot become [::]:8000"},
		{name: "another network", configured: []Address{{Name: "web", Network: NetworkUnix, Addr: "/run/a.sock"}}, held: []Address{web}, want: "cannot become unix:/run/a.sock"},
		{name: "one more", configured: []Address{web, sock}, held: []Address{web}, want: `"sock" (unix:/run/a.sock) was not opened at the start`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := Unchanged(tt.configured, tt.held)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("it says %v", err)
			case tt.want != "" && (!errors.Is(err, ErrBadAddress) || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("it says %v, want %q", err, tt.want)
			}
		})
	}
}
