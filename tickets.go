package gapless

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// maxTickets bounds what is read of the ticket keys, in bytes.
const maxTickets = 64 << 10

// readTickets reads the keys of TLS session tickets, newest first, so that a
// client can resume with a worker that did not issue its ticket.
func readTickets(f *os.File) ([][32]byte, error) {
	defer f.Close()
	// The description, and so its offset, is shared with other workers.
	text, err := io.ReadAll(io.NewSectionReader(f, 0, maxTickets))
	if err != nil {
		return nil, fmt.Errorf("read ticket keys: %w", err)
	}
	return parseTickets(text)
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
