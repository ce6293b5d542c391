package lifecycle

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"gapless/upgrade"

	"go.uber.org/zap"
)

// The keys of TLS session tickets are the same for all workers of all generations, or a client that reconnects after an
// upgrade would have to shake hands in full. They live in anonymous memory that masters and workers inherit, and never in
// the environment or on disk.
const (
	ticketsFile     = "tickets" // among the files of tableflip
	ticketsVariable = "GAPLESS_TICKETS"
	// ticketKeys is how many keys are known at a time; the first one encrypts. A ticket is good for at least
	// (ticketKeys-1) rotations: two days, and Go's own limit is seven.
	ticketKeys     = 3
	ticketRotation = 24 * time.Hour
	ticketCheck    = time.Hour
)

// tickets is the memory with the keys.
type tickets struct {
	f   *os.File
	log *zap.Logger
}

// openTickets takes over the keys of the masters before, or makes some. left is what a dead master left; nil: there is none.
func openTickets(files upgrade.Files, left *heritage, log *zap.Logger) (*tickets, error) {
	if left != nil {
		if f := left.store.take(ticketsFile, 1); f != nil {
			return &tickets{f[0], log}, files.AddFile(ticketsFile, f[0])
		}
	}
	f, err := files.File(ticketsFile)
	if err != nil {
		return nil, fmt.Errorf("ticket keys: %w", err)
	}
	if f != nil {
		return &tickets{f, log}, nil
	}
	if f, err = anonymousFile("gapless-tickets"); err != nil {
		return nil, fmt.Errorf("memory for ticket keys: %w", err)
	}
	t := &tickets{f, log}
	keys := make([]string, ticketKeys)
	for i := range keys {
		keys[i] = newTicketKey()
	}
	if err := t.write(keys); err != nil {
		return nil, err
	}
	return t, files.AddFile(ticketsFile, f)
}

func newTicketKey() string {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // it never fails
	return base64.StdEncoding.EncodeToString(key)
}

// write replaces the keys. The text always has the same length, so that a reader at that moment finds a whole one.
func (t *tickets) write(keys []string) error {
	text, err := json.Marshal(keys)
	if err == nil {
		_, err = t.f.WriteAt(text, 0)
	}
	if err != nil {
		return fmt.Errorf("write ticket keys: %w", err)
	}
	return nil
}

// rotate adds a new key in front and forgets the last one.
func (t *tickets) rotate() error {
	text, err := io.ReadAll(io.NewSectionReader(t.f, 0, 4096))
	if err != nil {
		return fmt.Errorf("read ticket keys: %w", err)
	}
	var keys []string
	if err := json.Unmarshal(text, &keys); err != nil || len(keys) != ticketKeys {
		return fmt.Errorf("ticket keys are damaged (%d of them): %w", len(keys), err)
	}
	return t.write(append([]string{newTicketKey()}, keys[:ticketKeys-1]...))
}

// run rotates until ctx ends. The age of the keys is the memory's own, so that it goes on counting over upgrades.
func (t *tickets) run(ctx context.Context) error {
	tick := time.NewTicker(ticketCheck)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			info, err := t.f.Stat()
			if err == nil && time.Since(info.ModTime()) >= ticketRotation {
				err = t.rotate()
			}
			if err != nil {
				t.log.Error("Ticket keys are not rotated", zap.Error(err))
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
