package lifecycle

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"gapless/upgrade"
	"gapless/workerpool"
)

// asker asks a starting worker over its own lane of the first address: the question cannot reach another worker, nor a
// client this one. Before the commit only the master in charge can connect like that, so it is asked for the connection.
type asker master

// askable tells, at the first start, whether --ready http= can work at all.
func (m *master) askable() error {
	first := m.cfg.Addresses[0].Name
	if ok, why := m.inv.Steerable(first); !ok {
		return fmt.Errorf("--ready http=%s: a single worker cannot be asked at %s: %s; choose another way to tell", m.cfg.Readiness.Path, first, why)
	}
	return nil
}

// Ask is workerpool.Asker's.
func (a *asker) Ask(ctx context.Context, w workerpool.Info, path string) error {
	m := (*master)(a)
	if len(w.Lanes) == 0 {
		return errors.New("it has no lane")
	}
	address := m.gate.names[0]
	var f *os.File
	var err error
	if m.state.get() == Starting && m.pred != nil {
		f, err = m.pred.Knock(ctx, address, w.Lanes[0])
	} else {
		f, err = m.gate.knock(address, w.Lanes[0])
	}
	if err != nil {
		return err
	}
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	} else {
		_ = conn.SetDeadline(time.Now().Add(time.Second))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+hostOf(m.cfg.Addresses[0])+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "gapless")
	req.Close = true
	if err := req.Write(conn); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	return nil
}

// hostOf is what a client on this machine would put into the Host header.
func hostOf(a upgrade.Address) string {
	return strings.NewReplacer("[::]:", "localhost:", "0.0.0.0:", "localhost:").Replace(a.Addr)
}
