package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"gapless/internal/control"
	"gapless/internal/packet"
	"gapless/internal/procfs"
	"gapless/internal/relay"
	"gapless/upgrade"

	"go.uber.org/zap"
)

const (
	// previewRole is what status calls the relay of the preview address.
	previewRole = "preview"
	// previewPrefix begins the name of the preview's socket among the files of tableflip and in the store.
	previewPrefix = "preview/"
	// previewTick is how often the socket is looked at while no relay serves it, previewPause how long it is left alone
	// after a failure.
	previewTick  = 20 * time.Millisecond
	previewPause = time.Second
)

// preview is the address whose connections reach the staged generation. A relay carries them to the public address over
// connections that the kernel recognizes by their source; where they end is decided there, so that the relay need not
// know what is staged.
//
// What always holds:
//   - The socket belongs to whoever is in charge, as the lanes do: it travels through tableflip and is with the parent.
//   - A relay accepts from it, while its master is in charge; it drains as the master's workers do, and what comes
//     meanwhile waits for the next one. There is none before the first connection.
type preview struct {
	file *os.File // nil: there is no preview
	name string   // among the files
	addr string   // where it is bound
}

// previewFile names the socket of a preview: one at another address is another socket. The store's names take no colon.
func previewFile(a upgrade.Address) string {
	return previewPrefix + strings.ReplaceAll(a.Addr, ":", "_")
}

// openPreview takes the socket over, or opens it.
func (m *master) openPreview() (err error) {
	a := m.cfg.Preview
	if a.Addr == "" {
		return nil
	}
	m.preview.name = previewFile(a)
	if m.left != nil {
		if f := m.left.store.take(m.preview.name, 1); f != nil {
			return errors.Join(m.files.AddFile(m.preview.name, f[0]), m.preview.use(f[0]))
		}
	}
	f, err := m.files.File(m.preview.name)
	if err != nil {
		return fmt.Errorf("--preview %s: %w", a.Addr, err)
	}
	if f == nil {
		if f, err = listenPreview(a.Addr); err != nil {
			return err
		}
		if err := m.files.AddFile(m.preview.name, f); err != nil {
			return errors.Join(fmt.Errorf("--preview %s: %w", a.Addr, err), f.Close())
		}
	}
	return m.preview.use(f)
}

func (p *preview) use(f *os.File) error {
	l, err := net.FileListener(f) // a duplicate
	if err != nil {
		return errors.Join(fmt.Errorf("socket of the preview: %w", err), f.Close())
	}
	p.file, p.addr = f, l.Addr().String()
	return l.Close()
}

func listenPreview(addr string) (*os.File, error) {
	network := "tcp6"
	if strings.Count(addr, ":") == 1 {
		network = "tcp4"
	}
	if strings.HasPrefix(addr, "[::]:") {
		network = "tcp" // both, as a listener there is
	}
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(context.Background(), network, addr)
	if err != nil {
		var errno syscall.Errno
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			by := procfs.PortOwner(upgrade.NetworkTCP, addr)
			if by != "" {
				by = " by " + by
			}
			return nil, fmt.Errorf("--preview %s: %w%s; choose another port", addr, upgrade.ErrAddressInUse, by)
		case errors.As(err, &errno):
			err = errno
		}
		return nil, fmt.Errorf("--preview %s: %w; choose another address", addr, err)
	}
	defer l.Close()
	return packet.Dup(l.(*net.TCPListener), "preview")
}

// previewable tells, at the first start, whether there can be a preview at all.
func (m *master) previewable() error {
	a := m.cfg.Preview
	if a.Addr == "" {
		return nil
	}
	if ok, why := m.inv.Steerable(a.Name); !ok {
		return fmt.Errorf("--preview %s: connections to the listener %s cannot be steered to one generation: %s; leave --preview out, or name another listener: NAME=ADDR",
			a.Addr, a.Name, why)
	}
	return nil
}

// ParsePreview reads the address of a preview, [NAME=]ADDR; "" is none. The name is that of the listener that is previewed,
// by default the first. Without listeners only the form is checked.
func ParsePreview(text string, listeners []upgrade.Address) (upgrade.Address, error) {
	if text == "" {
		return upgrade.Address{}, nil
	}
	a, err := upgrade.ParseAddress(text)
	if err != nil {
		return a, err
	}
	if a.Network != upgrade.NetworkTCP {
		return a, fmt.Errorf("%s is no TCP address; write, for example, 127.0.0.1:9000", a)
	}
	if len(listeners) == 0 {
		return a, nil
	}
	if a.Name == "" {
		a.Name = listeners[0].Name
	}
	var names []string
	known := false
	for _, l := range listeners {
		if l.String() == a.String() && !strings.HasSuffix(a.Addr, ":0") {
			return a, fmt.Errorf("%s is a --listen as well; choose another port", a)
		}
		if l.Name == a.Name {
			if l.Network == upgrade.NetworkUnix {
				return a, fmt.Errorf("the listener %s is a unix socket, whose connections cannot be steered to one generation; leave --preview out, or name another listener: NAME=ADDR", l.Name)
			}
			known = true
		}
		names = append(names, l.Name)
	}
	if known {
		return a, nil
	}
	return a, fmt.Errorf("no --listen is called %q; the names are %s", a.Name, strings.Join(names, ", "))
}

// previewTarget is where a relay carries preview connections to.
func (m *master) previewTarget(address string) (relay.Target, error) {
	r, err := m.inv.PreviewRoute(address)
	return relay.Target{Listener: address, Network: r.Network, Addr: r.Addr, Source: r.Source, Class: r.Class}, err
}

// watchPreview serves the preview address of the settings.
func (m *master) watchPreview(ctx context.Context) {
	if m.preview.file != nil {
		m.servePreview(ctx, m.preview.file, m.cfg.Preview.Name)
	}
}

// servePreview sees to it that a relay serves a preview address as soon as somebody comes, until ctx ends. What the relay
// has then accepted it carries to its end.
func (m *master) servePreview(ctx context.Context, file *os.File, listener string) {
	target, err := m.previewTarget(listener)
	if err != nil {
		m.log.Error("Nothing can be previewed", zap.Error(err))
		return
	}
	tick := time.NewTicker(previewTick)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if relay.Waiting(file) == 0 {
			continue
		}
		client, err := m.startRelay(previewRole)
		if err == nil {
			if err = client.Serve(target, file); err == nil {
				m.follow(ctx, client)
				continue
			}
			client.Close() // it ends, as nobody can give it another order
		}
		m.log.Error("Preview connections wait", zap.Error(err))
		select {
		case <-time.After(previewPause):
		case <-ctx.Done():
		}
	}
}

// follow returns when a relay has ended, or ctx has: then the relay is let go, which it takes for the order to drain.
func (m *master) follow(ctx context.Context, client *relay.Client) {
	stop := context.AfterFunc(ctx, func() { client.Close() })
	for {
		if _, err := client.Status(); err != nil {
			break
		}
	}
	if stop() {
		client.Close()
	}
}

// dropPreview has the parent close the socket of a preview that the settings do not name any more.
func (m *master) dropPreview(name string) {
	if name != "" && name != m.preview.name {
		m.keep.remove(name)
	}
}

// previewStatus says who answers at the preview address.
func (m *master) previewStatus(staged *control.Staged) *control.Preview {
	open, name, forStage := m.previewAt()
	if open == nil || forStage && staged == nil {
		return nil
	}
	p := &control.Preview{URL: open.url(), Address: name, Generation: m.generation, ForStage: forStage}
	if staged != nil && len(m.inv.Preview(name)) > 0 {
		p.Generation = staged.Generation
	}
	return p
}

// url is what a person can open.
func (p *preview) url() string {
	return urlOf(upgrade.Address{Network: upgrade.NetworkTCP, Addr: p.addr})
}
