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
