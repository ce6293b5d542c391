package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gapless/internal/control"
	"gapless/upgrade"
)

// find returns a client of the gapless that the flags mean, or why there is none.
func (f clientFlags) find(ctx context.Context) (*control.Client, *result) {
	c, err := f.client(ctx)
	var usage *usageError
	switch {
	case err == nil:
		return c, nil
	case errors.As(err, &usage):
		return nil, &result{statusUsage, err}
	case errors.Is(err, control.ErrNotRunning):
		return nil, &result{statusNotRunning, err}
	default:
		return nil, &result{statusFailed, err}
	}
}

// usageError is a mistake on the command line that only shows once the running processes are known.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func (f clientFlags) client(ctx context.Context) (*control.Client, error) {
	// What is said on this command line counts; --control alone may come from the environment.
	var given []string
	for flag, is := range map[string]bool{"--pid-file": f.PIDFile != nil, "--port": f.Port != nil, "--listen": f.Listen != nil} {
		if is {
			given = append(given, flag)
		}
	}
	slices.Sort(given)
	if len(given) > 1 {
		return nil, &usageError{fmt.Sprintf("%s: one of them is enough: leave the others out", strings.Join(given, ", "))}
	}
	folders := control.Folders(os.Geteuid(), os.Getenv)
	switch {
	case f.PIDFile != nil:
		return byPIDFile(ctx, *f.PIDFile, folders)
	case f.Listen != nil:
		return byListener(ctx, *f.Listen, folders)
	case f.Port != nil:
		return byPort(ctx, *f.Port, folders)
	case f.Control != "":
		return control.Dial(ctx, f.Control)
	}
	all := living(ctx, folders)
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: no living control socket in %s; if it was started with --control PATH, give the same here",
			control.ErrNotRunning, strings.Join(folders, ", "))
	}
	return only(ctx, all)
}

// only returns the one client, or an error with the flags that choose one of several: by its port, where no other has it.
func only(ctx context.Context, clients []*control.Client) (*control.Client, error) {
	if len(clients) == 1 {
		return clients[0], nil
	}
	ports := make([]string, len(clients))
	for i, c := range clients {
		ports[i] = firstPort(ctx, c)
	}
	var choices []string
	for i, c := range clients {
		flag := "--control " + c.Path()
		if p := ports[i]; p != "" && slices.Index(ports, p) == i && !slices.Contains(ports[i+1:], p) {
			flag = "--port " + p
		}
		choices = append(choices, fmt.Sprintf("%s (pid %d)", flag, c.ParentPID()))
	}
	return nil, &usageError{"several run: choose one with " + strings.Join(choices, " or ")}
}

// socketPort finds the port in the name of a default control socket, as byPort does.
var socketPort = regexp.MustCompile(`_([1-9][0-9]{0,4})` + regexp.QuoteMeta(control.SocketSuffix) + `$`)

func firstPort(ctx context.Context, c *control.Client) string {
	if m := socketPort.FindStringSubmatch(c.Path()); m != nil {
		return m[1]
	}
	if st, err := c.Status(ctx); err == nil && len(st.Addresses) > 0 {
		return portOf(st.Addresses[0].URL)
	}
	return ""
}

// living returns clients of all that answer in the folders.
func living(ctx context.Context, folders []string) []*control.Client {
	var clients []*control.Client
	for _, folder := range folders {
		paths, err := filepath.Glob(filepath.Join(globQuoted(folder), "*"+control.SocketSuffix))
		if err != nil {
			continue // no pattern of ours is bad
		}
		for _, path := range paths {
			if c, err := control.Dial(ctx, path); err == nil {
				clients = append(clients, c)
			}
		}
	}
	return clients
}

func globQuoted(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

func byPIDFile(ctx context.Context, path string, folders []string) (*control.Client, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no PID file %s", control.ErrNotRunning, path)
	}
	if err != nil {
		return nil, fmt.Errorf("--pid-file: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 0 {
		return nil, &usageError{fmt.Sprintf("--pid-file: %s holds no PID: remove it, or name the file that run --pid-file names", path)}
	}
	for _, c := range living(ctx, folders) {
		if c.ParentPID() == pid {
			return c, nil
		}
	}
	// With run --control it lies elsewhere; the kernel knows where.
	for _, path := range control.SocketsOf(pid) {
		if c, err := control.Dial(ctx, path); err == nil && c.ParentPID() == pid {
			if _, err := c.Status(ctx); err == nil {
				return c, nil
			}
		}
	}
	return nil, fmt.Errorf("%w: process %d, which %s names, has no control socket", control.ErrNotRunning, pid, path)
}

func byListener(ctx context.Context, text string, folders []string) (*control.Client, error) {
	addr, err := upgrade.ParseAddress(text)
	if err != nil {
		return nil, &usageError{fmt.Sprintf("--listen: %v", err)}
	}
	for _, folder := range folders {
		c, err := control.Dial(ctx, control.DefaultPath(folder, addr.String(), 0))
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, control.ErrNotRunning) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: no gapless has %s as its first listener", control.ErrNotRunning, addr)
}

// byPort asks those that run, because only the first listener is in a socket's name, and not even that if the kernel
// chose its port.
func byPort(ctx context.Context, port int, folders []string) (*control.Client, error) {
	if port < 1 || port > 65535 {
		return nil, &usageError{fmt.Sprintf("--port: %d is no port; write 1 to 65535", port)}
	}
	var named, asked []*control.Client
	for _, c := range living(ctx, folders) {
		if strings.HasSuffix(c.Path(), fmt.Sprintf("_%d%s", port, control.SocketSuffix)) {
			named = append(named, c)
			continue
		}
		st, err := c.Status(ctx)
		if err == nil && slices.ContainsFunc(st.Addresses, func(a control.Address) bool { return portOf(a.URL) == strconv.Itoa(port) }) {
			asked = append(asked, c)
		}
	}
	if len(named) == 0 {
		named = asked
	}
	if len(named) == 0 {
		return nil, fmt.Errorf("%w: no gapless listens at port %d", control.ErrNotRunning, port)
	}
	return only(ctx, named)
}

func portOf(address string) string {
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		return u.Port()
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	return port
}
