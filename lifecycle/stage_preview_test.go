package lifecycle

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"gapless/upgrade"

	"go.uber.org/zap"
)

func TestOpenStagePreview_Refuses(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	listeners := []upgrade.Address{
		{Name: "web", Network: upgrade.NetworkTCP, Addr: "127.0.0.1:81"},
		{Name: "local", Network: upgrade.NetworkUnix, Addr: "/run/app.sock"},
	}
	for _, tc := range []struct {
		name, text, ofRun, want string
		invalid                 bool
	}{
		{name: "no address", text: "nonsense", want: "nonsense", invalid: true},
		{name: "unix", text: "unix:/run/p.sock", want: "is no TCP address", invalid: true},
		{name: "unknown listener", text: "api=127.0.0.1:0", want: `no --listen is called "api"`, invalid: true},
		{name: "unix listener", text: "local=127.0.0.1:0", want: "is a unix socket", invalid: true},
		{name: "a listener's address", text: "127.0.0.1:81", want: "is a --listen as well", invalid: true},
		{name: "run has one", text: "127.0.0.1:0", ofRun: "127.0.0.1:9000", want: "gapless run has --preview 127.0.0.1:9000 already", invalid: true},
		{name: "in use", text: taken.Addr().String(), want: "choose another port"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			m := &master{log: zap.NewNop()}
			m.cfg.Preview.Addr = tc.ofRun
			p, err := m.openStagePreview(tc.text, listeners)
			if p != nil || err == nil || !strings.Contains(err.Error(), tc.want) || errors.Is(err, errInvalid) != tc.invalid {
				t.Errorf("got %v, %v (invalid: %t), want %q (invalid: %t)", p, err, errors.Is(err, errInvalid), tc.want, tc.invalid)
			}
			if !tc.invalid && !errors.Is(err, upgrade.ErrAddressInUse) {
				t.Errorf("%v is no ErrAddressInUse", err)
			}
		})
	}
}

// The address refuses as soon as it is closed, although another process may still have the socket, and can be bound anew.
func TestStagePreview_Close(t *testing.T) {
	t.Parallel()
	listeners := []upgrade.Address{{Name: "web", Network: upgrade.NetworkTCP, Addr: "127.0.0.1:81"}}
	m := &master{log: zap.NewNop()}
	addr := "127.0.0.1:0"
	for range 3 {
		p, err := m.openStagePreview(addr, listeners)
		if err != nil {
			t.Fatal(err)
		}
		addr = p.addr
		other, err := net.FileListener(p.file)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		var ended bool
		p.serve(func(ctx context.Context) { <-ctx.Done(); ended = true })
		c, err := net.DialTimeout("tcp", addr, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		p.close(m.log)
		if !ended {
			t.Error("it is still served")
		}
		if c, err := net.DialTimeout("tcp", addr, 5*time.Second); err == nil {
			_ = c.Close()
			t.Error("somebody listens after the end")
		}
		p.close(m.log)
		p.serve(func(context.Context) { t.Error("it is served after the end") })
		_ = other.Close()
	}
	var none *stagePreview
	none.serve(nil)
	none.close(m.log)
}
