//go:build unix

package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxStatus   = 64 << 20 // of 4096 workers, with room to spare
	maxLine     = 4 << 20
	dialTimeout = 5 * time.Second
)

// Client speaks to the parent at a control socket. Its methods are those of Controller and may be called from many
// goroutines. Their errors match ErrNotRunning if nobody listens at the socket, and otherwise what the parent's did.
type Client struct {
	// NoWait makes operations return, with OK and nothing else known, as soon as the parent has taken them.
	NoWait bool

	path   string
	parent int
	http   *http.Client
}

var _ Controller = (*Client)(nil)

// Dial returns a client of the control socket at path after it has seen that a gapless of this user or of root listens
// there.
func Dial(ctx context.Context, path string) (*Client, error) {
	c := &Client{path: path}
	conn, who, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	c.parent = who.pid
	if err := conn.Close(); err != nil {
		return nil, err
	}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, _, err := c.dial(ctx)
			return conn, err
		},
		DisableKeepAlives:      true, // a verb makes one request, and a leftover connection would only hold the parent up
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeader,
	}}
	return c, nil
}

// Path returns where the control socket lies.
func (c *Client) Path() string { return c.path }

// ParentPID returns the PID of the parent, from the kernel.
func (c *Client) ParentPID() int { return c.parent }

func (c *Client) dial(ctx context.Context) (net.Conn, peer, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.path)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED):
		return nil, peer{}, fmt.Errorf("%w: nobody listens at %s", ErrNotRunning, c.path)
	case err != nil:
		return nil, peer{}, fmt.Errorf("connect to %s: %w", c.path, err)
	}
	who, err := peerOf(conn.(*net.UnixConn))
	if uid := os.Geteuid(); err == nil && who.uid != uid && who.uid != 0 && uid != 0 {
		err = fmt.Errorf("user %d listens at %s: a gapless of user %d or of root was expected", who.uid, c.path, uid)
	}
	if err != nil {
		_ = conn.Close()
		return nil, peer{}, err
	}
	return conn, who, nil
}

// remoteError is what the parent answered. It matches the sentinel of its code.
type remoteError struct{ problem }

func (e *remoteError) Error() string { return e.Message }

func (e *remoteError) Is(target error) bool {
	switch e.Code {
	case codeBusy:
		return target == ErrBusy
	case codeNoMaster:
		return target == ErrNoMaster
	case codeNotRunning:
		return target == ErrNotRunning
	}
	return false
}

// Status returns what runs.
func (c *Client) Status(ctx context.Context) (Status, error) {
	resp, err := c.do(ctx, http.MethodGet, "status", nil)
	if err != nil {
		return Status{}, err
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	return decodeStatus(resp.Body)
}

func decodeStatus(r io.Reader) (Status, error) {
	body, err := io.ReadAll(io.LimitReader(r, maxStatus+1))
	if err != nil {
		return Status{}, fmt.Errorf("read the status: %w", err)
	}
	if len(body) > maxStatus {
		return Status{}, fmt.Errorf("read the status: it has more than %d bytes", maxStatus)
	}
	var st Status
	if err := json.Unmarshal(body, &st); err != nil {
		return Status{}, fmt.Errorf("read the status: %w", err)
	}
	return st, nil
}

// Upgrade upgrades.
func (c *Client) Upgrade(ctx context.Context, req UpgradeRequest, progress func(Event)) (Result, error) {
	return c.operate(ctx, "upgrade", req, progress)
}

// Reload replaces the workers.
func (c *Client) Reload(ctx context.Context, req ReloadRequest, progress func(Event)) (Result, error) {
	return c.operate(ctx, "reload", req, progress)
}

// Scale changes the number of workers.
func (c *Client) Scale(ctx context.Context, req ScaleRequest, progress func(Event)) (Result, error) {
	return c.operate(ctx, "scale", req, progress)
}

// Shift gives a staged generation a share.
func (c *Client) Shift(ctx context.Context, req ShiftRequest, progress func(Event)) (Result, error) {
	return c.operate(ctx, "shift", req, progress)
}

// Promote has a staged generation take over.
func (c *Client) Promote(ctx context.Context, req PromoteRequest, progress func(Event)) (Result, error) {
	return c.operate(ctx, "promote", req, progress)
}

// Abort takes a staged generation down.
func (c *Client) Abort(ctx context.Context, req AbortRequest, progress func(Event)) (Result, error) {
	return c.operate(ctx, "abort", req, progress)
}

// Rollback gives everything back to the old generation.
func (c *Client) Rollback(ctx context.Context, req RollbackRequest, progress func(Event)) (Result, error) {
	return c.operate(ctx, "rollback", req, progress)
}

// Stop ends gapless.
func (c *Client) Stop(ctx context.Context, req StopRequest, progress func(Event)) (Result, error) {
	return c.operate(ctx, "stop", req, progress)
}

// Subscribe calls handle for each event until ctx ends or the parent does; it returns nil in both cases.
func (c *Client) Subscribe(ctx context.Context, handle func(Event)) error {
	resp, err := c.do(ctx, http.MethodGet, "events", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	_, _, err = readLines(resp.Body, handle)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (c *Client) operate(ctx context.Context, verb string, req any, progress func(Event)) (Result, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return Result{}, err
	}
	path := verb
	if c.NoWait {
		path += "?wait=false"
	}
	resp, err := c.do(ctx, http.MethodPost, path, body)
	if err != nil {
		return Result{}, err
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	if resp.StatusCode == http.StatusAccepted {
		return Result{OK: true}, nil
	}
	result, known, err := readLines(resp.Body, progress)
	switch {
	case err != nil:
		return Result{}, fmt.Errorf("%s: %w", verb, err)
	case !known:
		return Result{}, fmt.Errorf("%s: %w", verb, ErrEnded)
	}
	return result, nil
}

// do makes a request. An answer that is no success is an error, except that of an operation, which ends in an outcome.
func (c *Client) do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://gapless/v1/"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask gapless: %w", errors.Unwrap(err)) // without the made-up URL
	}
	switch {
	case resp.StatusCode < 300, resp.StatusCode == http.StatusConflict:
		return resp, nil
	case resp.StatusCode == http.StatusBadRequest && method == http.MethodPost:
		return resp, nil // an outcome that says invalid, or an error
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	_, _, err = readLines(resp.Body, nil)
	if err == nil {
		err = fmt.Errorf("gapless answered %s and said nothing of why", resp.Status)
	}
	return nil, err
}

// readLines reads a stream to its end, or to its outcome, and calls handle (nil: nobody) for the events in it. known
// tells whether there was an outcome.
func readLines(r io.Reader, handle func(Event)) (result Result, known bool, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		text := bytes.TrimSpace(lines.Bytes())
		if len(text) == 0 {
			continue
		}
		var l line
		if err := json.Unmarshal(text, &l); err != nil {
			return Result{}, false, fmt.Errorf("read the answer: %w", err)
		}
		switch {
		case l.Error != nil:
			return Result{}, false, &remoteError{*l.Error}
		case l.Result != nil:
			return *l.Result, true, nil
		case handle != nil && l.Kind != "":
			handle(l.Event)
		}
	}
	if err := lines.Err(); err != nil {
		return Result{}, false, fmt.Errorf("read the answer: %w", err)
	}
	return Result{}, false, nil
}
