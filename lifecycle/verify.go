package lifecycle

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"gapless/internal/packet"
	"gapless/internal/relay"
	"gapless/upgrade"

	"go.uber.org/zap"
)

// Step is where a staged generation stands when it is verified.
type Step struct {
	Generation int
	Percent    int  // of new connections that it gets
	Final      bool // the promotion follows
}

// Verifier tells whether a staged generation may go on. Its error aborts the generation; an *upgrade.StageError carries the
// last lines of what failed. ctx ends when the generation is given up for another reason. Of one stage never two calls run
// at a time.
type Verifier interface {
	Verify(ctx context.Context, s Step) error
}

const (
	// DefaultVerifyProbes is how many requests each path gets at each step.
	DefaultVerifyProbes = 20
	// probeTimeout bounds one of them.
	probeTimeout = 5 * time.Second
	// maxProbeBody is what is read of an answer at most: enough to see that it comes whole.
	maxProbeBody = 1 << 20
)

// verification is what a request to stage asks to be verified.
type verification struct {
	Commands []string      `json:"commands,omitempty"`
	Paths    []string      `json:"paths,omitempty"`   // PATH or PATH=STATUS
	Probes   int           `json:"probes,omitempty"`  // of each path; 0: DefaultVerifyProbes
	Timeout  time.Duration `json:"timeout,omitempty"` // of each command; 0: none
}

// probe is one kind of request to a staged generation.
type probe struct {
	path   string
	status int // 0: any below 400
}

// withStatus finds the status at the end of what --verify-http was given. A path may hold a "=", too.
var withStatus = regexp.MustCompile(`^(.*)=([0-9]{3})$`)

// parseProbe reads PATH[=STATUS].
func parseProbe(text string) (probe, error) {
	p := probe{path: text}
	if m := withStatus.FindStringSubmatch(text); m != nil {
		status, err := strconv.Atoi(m[2])
		if err != nil || status < 200 || status > 599 {
			return p, fmt.Errorf("%q: %s is no status of an answer; write, for example, /healthz=200", text, m[2])
		}
		p.path, p.status = m[1], status
	}
	if !strings.HasPrefix(p.path, "/") || strings.ContainsFunc(p.path, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return p, fmt.Errorf("%q is no path; write, for example, /healthz", text)
	}
	return p, nil
}

// CheckVerifyHTTP tells whether a text is a PATH or PATH=STATUS that can be asked for.
func CheckVerifyHTTP(text string) error {
	_, err := parseProbe(text)
	return err
}

// verifier returns what a request to stage asks for; nil: nothing is verified.
func (m *master) verifier(r *stageRequest) (Verifier, error) {
	v := r.Verify
	if len(v.Commands) == 0 && len(v.Paths) == 0 {
		return nil, nil
	}
	c := &checks{m: m, commands: v.Commands, probes: v.Probes, limit: v.Timeout}
	if c.probes == 0 {
		c.probes = DefaultVerifyProbes
	}
	for _, text := range v.Paths {
		p, err := parseProbe(text)
		if err != nil {
			return nil, fmt.Errorf("verify-http: %w", err)
		}
		c.paths = append(c.paths, p)
	}
	return c, nil
}

// checks verify a staged generation by requests and commands.
type checks struct {
	m        *master
	paths    []probe
	probes   int
	commands []string
	limit    time.Duration
}

// Verify is Verifier's. Paths come first: they are the cheaper question.
func (c *checks) Verify(ctx context.Context, s Step) error {
	for _, p := range c.paths {
		if err := c.ask(ctx, p, s); err != nil {
			return err
		}
	}
	if len(c.commands) == 0 {
		return nil
	}
	addr, end, err := c.previewAddr()
	if err != nil {
		return fmt.Errorf("no preview for the verification: %w", err)
	}
	defer end()
	for _, command := range c.commands {
		if err := c.run(ctx, command, addr, s); err != nil {
			return err
		}
	}
	return nil
}

// listener is the name of the address that is verified.
func (c *checks) listener() string {
	if _, name, _ := c.m.previewAt(); name != "" {
		return name
	}
	return c.m.gate.names[0]
}

// ask sends the probes of one path to the staged generation, each over a connection of its own.
func (c *checks) ask(ctx context.Context, p probe, s Step) error {
	route, err := c.m.inv.PreviewRoute(c.listener())
	if err != nil {
		return err
	}
	bound, _ := c.m.inv.Bound(c.listener())
	want := "a status below 400"
	if p.status != 0 {
		want = strconv.Itoa(p.status)
	}
	for i := range c.probes {
		status, body, err := askOnce(ctx, route, hostOf(bound), p.path)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil && (p.status == status || p.status == 0 && status < http.StatusBadRequest):
			continue
		case err == nil:
			err = fmt.Errorf("%d %s instead of %s", status, http.StatusText(status), want)
		}
		return &upgrade.StageError{Reason: fmt.Sprintf("verification of %s at %d %%, request %d of %d: %v", p.path, s.Percent, i+1, c.probes, err), Tail: lastLines(body)}
	}
	return nil
}

// askOnce returns the status and the body of an answer that has come whole.
func askOnce(ctx context.Context, route upgrade.Route, host, path string) (status int, body string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, probeTimeout, fmt.Errorf("no whole answer within %v", probeTimeout))
	defer cancel()
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
	}()
	conn, err := route.Dialer(0).DialContext(ctx, route.Network, route.Addr)
	if err != nil {
		return 0, "", err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+path, nil)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("User-Agent", "gapless")
	req.Close = true
	if err := req.Write(conn); err != nil {
		return 0, "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxProbeBody))
	return resp.StatusCode, string(text), err
}

// run runs a command as a previous step is run.
func (c *checks) run(ctx context.Context, command, addr string, s Step) error {
	if c.limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, c.limit, fmt.Errorf("not finished within --verify-timeout %v", c.limit))
		defer cancel()
	}
	dir := ""
	if staged := c.m.stage.Load(); staged != nil {
		dir = staged.factsNow().ReleaseDir
	}
	environ, err := readEnvFiles(os.Environ(), c.m.cfg.EnvFiles)
	if err != nil {
		return err
	}
	env := append(workerEnviron(environ, dir), "GAPLESS_PREVIEW_ADDR="+addr, "GAPLESS_GENERATION="+strconv.Itoa(s.Generation), "GAPLESS_WEIGHT="+strconv.Itoa(s.Percent))
	c.m.log.Info("Running verification", zap.String("command", command), zap.Int("to_generation", s.Generation), zap.Int("percent", s.Percent), zap.String("preview", addr))
	var tail tailWriter
	began := time.Now()
	if err := shell(ctx, command, dir, env, &tail, c.m.keep); err != nil {
		return &upgrade.StageError{Reason: fmt.Sprintf("verification %q at %d %%: %v", command, s.Percent, err), Tail: tail.lines()}
	}
	c.m.log.Info("Verification finished", zap.String("command", command), zap.Duration("took", time.Since(began)))
	return nil
}

// previewAddr is where commands reach the staged generation: at the preview address, or at one of this verification's own,
// which lasts until end is called.
func (c *checks) previewAddr() (addr string, end func(), err error) {
	if p, _, _ := c.m.previewAt(); p != nil {
		return reachable(p.addr), func() {}, nil
	}
	target, err := c.m.previewTarget(c.listener())
	if err != nil {
		return "", nil, err
	}
	f, err := listenPreview("127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	defer f.Close() // the relay gets a copy
	l, err := net.FileListener(f)
	if err != nil {
		return "", nil, err
	}
	defer l.Close()
	end, err = serveHere(target, f, c.m.log)
	return l.Addr().String(), end, err
}

// serveHere runs a relay in this process: unlike those that clients use, it need not outlive its master.
func serveHere(target relay.Target, listener *os.File, log *zap.Logger) (end func(), err error) {
	mine, theirs, err := packet.Pair()
	if err != nil {
		return nil, err
	}
	orders, err := packet.New(theirs)
	if err != nil {
		return nil, errors.Join(err, mine.Close())
	}
	conn, err := packet.New(mine)
	if err != nil {
		return nil, errors.Join(err, orders.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = relay.Run(ctx, relay.Config{Orders: orders, Logger: log}) // it ends when it is canceled
	}()
	client := relay.NewClient(conn)
	end = func() {
		cancel()
		<-done
		client.Close()
	}
	if err := client.Serve(target, listener); err != nil {
		end()
		return nil, err
	}
	return end, nil
}

// reachable is an address that a client on this machine can connect to.
func reachable(addr string) string {
	return strings.NewReplacer("[::]:", "127.0.0.1:", "0.0.0.0:", "127.0.0.1:").Replace(addr)
}
