package main

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"gapless/upgrade"
)

// healthAddress reads where the parent answers; "" is nowhere.
func healthAddress(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	a, err := upgrade.ParseAddress(text)
	switch {
	case err != nil:
		return "", err
	case a.Network != upgrade.NetworkTCP || a.Name != "":
		return "", fmt.Errorf("%w %q: it must be TCP, without a name: write HOST:PORT, as in 127.0.0.1:8081", upgrade.ErrBadAddress, text)
	}
	return text, nil
}

// parsePreview reads the address of the preview; "" is none. The name is that of the listener that is previewed.
func parsePreview(text string, listeners []upgrade.Address) (upgrade.Address, error) {
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

func (c *runCmd) addresses() ([]upgrade.Address, error) {
	if len(c.Listen) > 0 && (c.Host != "" || c.Port != nil) {
		return nil, errors.New("--listen: cannot be combined with --host and --port; write one more --listen instead")
	}
	texts := c.Listen
	if len(texts) == 0 {
		host, port := defaultHost, defaultPort
		if c.Host != "" {
			host = c.Host
		}
		if c.Port != nil {
			port = *c.Port
		}
		if port < 0 || port > 65535 {
			return nil, fmt.Errorf("--port: %d is no port; write 1 to 65535, or 0 for any that is free", port)
		}
		texts = []string{net.JoinHostPort(strings.Trim(host, "[]"), strconv.Itoa(port))}
	}
	var addrs []upgrade.Address
	for _, text := range texts {
		a, err := upgrade.ParseAddress(text)
		if err != nil {
			return nil, fmt.Errorf("--listen: %w", err)
		}
		addrs = append(addrs, a)
	}
	named, err := upgrade.NameAddresses(addrs)
	if err != nil {
		return nil, fmt.Errorf("--listen: %w", err)
	}
	return named, nil
}
