//go:build linux

package test

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

// event is one line that gapless has logged.
type event struct {
	Level      string   `json:"level"`
	Msg        string   `json:"msg"`
	Generation int      `json:"generation"`
	To         int      `json:"to_generation"`
	After      int      `json:"after_generation"`
	PID        int      `json:"pid"`
	Worker     int      `json:"worker"`
	State      string   `json:"state"`
	Phase      string   `json:"phase"`
	Reason     string   `json:"reason"`
	Error      string   `json:"error"`
	LastLines  []string `json:"last_lines"`
	Took       float64  `json:"took"` // seconds
	Draining   int      `json:"draining"`
}

// output reads the file into which a gapless and its workers write.
type output struct {
	path string

	mu     sync.Mutex
	offset int
	events []event
	others []string // lines that are not gapless's own
	rest   []byte   // a line that is not complete
}

// read takes in what has been written since.
func (o *output) read() ([]event, []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f, err := os.Open(o.path)
	if err != nil {
		return o.events, o.others
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || int(info.Size()) == o.offset {
		return o.events, o.others
	}
	more := make([]byte, int(info.Size())-o.offset)
	n, _ := f.ReadAt(more, int64(o.offset))
	o.offset += n
	text := append(o.rest, more[:n]...)
	for {
		line, after, complete := bytes.Cut(text, []byte("\n"))
		if !complete {
			o.rest = slices.Clone(text)
			return o.events, o.others
		}
		text = after
		var e event
		if json.Unmarshal(line, &e) == nil && e.Msg != "" {
			o.events = append(o.events, e)
		} else {
			o.others = append(o.others, string(line))
		}
	}
}

// find returns the events that match.
func (o *output) find(match func(event) bool) []event {
	events, _ := o.read()
	var found []event
	for _, e := range events {
		if match(e) {
			found = append(found, e)
		}
	}
	return found
}

// text is what the workers, and whoever else has the file, have printed.
func (o *output) text() string {
	_, others := o.read()
	return strings.Join(others, "\n")
}

// tail shows the end of everything, for failures.
func (o *output) tail(t testing.TB, lines int) string {
	t.Helper()
	b, err := os.ReadFile(o.path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func msg(text string) func(event) bool { return func(e event) bool { return e.Msg == text } }

// completed also if the new master has died before it could say so: who took its place belongs to the generation in charge.
func completed(generation int) func(event) bool {
	return func(e event) bool { return tookCharge(e) && e.Generation == generation }
}

func tookCharge(e event) bool { return e.Msg == "Upgrade complete" || e.Msg == tookPlace }

func aborted(generation int) func(event) bool {
	return func(e event) bool { return strings.HasPrefix(e.Msg, "Upgrade aborted") && e.To == generation }
}
