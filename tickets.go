package gapless

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

const (
	// maxTickets bounds what is read of the ticket keys, in bytes.
	maxTickets = 64 << 10
	// ticketLook is how often a worker looks for rotated keys. It costs a read
	// of some hundred bytes.
	ticketLook = time.Minute
)

// tickets are the keys of TLS session tickets, which the manager rotates in
// memory that all workers of all generations share: a client can resume with
// a worker that did not issue its ticket.
type tickets struct {
	f *os.File

	mu   sync.Mutex
	text []byte // as last read

	// keys is a configuration that holds the keys and nothing else.
	// SetSessionTicketKeys of a configuration that is being served would have
	// no effect, as net/http serves a copy of it; but the copy goes on calling
	// the functions that it was given.
	keys *tls.Config
}

// openTickets takes over f and reads the keys; it closes f if it fails.
func openTickets(f *os.File) (*tickets, error) {
	t := &tickets{f: f, keys: &tls.Config{MinVersion: tls.VersionTLS12}}
	if err := t.look(); err != nil {
		_ = f.Close()
		return nil, err
	}
	return t, nil
}

// look reads the keys and puts those in force that are new. Where the manager
// writes them at that very moment, a key may be made up of two: tickets of
// this worker are then of no use with others until the next look.
func (t *tickets) look() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	// The description, and so its offset, is shared with other workers.
	text, err := io.ReadAll(io.NewSectionReader(t.f, 0, maxTickets))
	if err != nil {
		return fmt.Errorf("read ticket keys: %w", err)
	}
	if bytes.Equal(text, t.text) {
		return nil
	}
	keys, err := parseTickets(text)
	if err != nil {
		return err
	}
	t.text = text
	t.keys.SetSessionTicketKeys(keys)
	return nil
}

// run looks for rotated keys until ctx ends. Keys that cannot be read leave
// those in force that were read last, which others know for some days.
func (t *tickets) run(ctx context.Context) {
	tick := time.NewTicker(ticketLook)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = t.look()
		case <-ctx.Done():
			return
		}
	}
}

// join returns cfg with the shared keys, unless the program takes care of
// tickets itself.
func (t *tickets) join(cfg *tls.Config) *tls.Config {
	if cfg.SessionTicketsDisabled || cfg.WrapSession != nil || cfg.UnwrapSession != nil {
		return cfg
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	cfg = cfg.Clone()
	cfg.WrapSession, cfg.UnwrapSession = t.keys.EncryptTicket, t.keys.DecryptTicket
	// For what GetConfigForClient returns: crypto/tls uses the keys of the
	// configuration that has that function, not its other functions.
	if keys, err := parseTickets(t.text); err == nil {
		cfg.SetSessionTicketKeys(keys)
	}
	return cfg
}

func parseTickets(text []byte) ([][32]byte, error) {
	var list []string
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("ticket keys: want a JSON list of strings: %w", err)
	}
	if len(list) == 0 {
		return nil, errors.New("ticket keys: the list is empty")
	}
	keys := make([][32]byte, len(list))
	for i, s := range list {
		// The errors tell nothing of the keys.
		key, err := base64.StdEncoding.DecodeString(s)
		if err != nil || len(key) != len(keys[i]) {
			return nil, fmt.Errorf("ticket keys: key %d is not 32 bytes in base64", i)
		}
		copy(keys[i][:], key)
	}
	return keys, nil
}
