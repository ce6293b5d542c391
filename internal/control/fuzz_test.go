package control

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func FuzzRequest(f *testing.F) {
	for _, seed := range []string{"", "{}", `{"workers":4}`, `{"workers":4}{}`, `{"workers":1e9}`, `{"now":true}`, "null", "[]", `{"workers":`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var req ScaleRequest
		if decodeRequest(body, &req) != nil || checkScale(req) != nil {
			return
		}
		if req.Workers < 1 || req.Workers > MaxWorkers || !json.Valid(body) {
			t.Errorf("%q was taken for %+v", body, req)
		}
	})
}

func FuzzLines(f *testing.F) {
	for _, seed := range []string{
		"", "\n\n", `{"kind":"log","text":"x"}` + "\n" + `{"result":{"ok":true}}`, `{"error":{"code":"busy","message":"x"}}`,
		`{"result":null}`, `{"kind":"worker","worker":1,"time":"2026-01-01T00:00:00Z"}`, `{"time":"never"}`, "{", `{"result":{"ok":1}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		result, known, err := readLines(bytes.NewReader(text), func(e Event) {
			if e.Kind == "" {
				t.Error("an event without a kind")
			}
		})
		if known && err != nil || !known && result.OK {
			t.Errorf("readLines(%q) = %+v, %v, %v", text, result, known, err)
		}
	})
}

func FuzzStatus(f *testing.F) {
	for _, seed := range []string{"", "{}", `{"generations":[{"workers":[{"pid":1}]}]}`, `{"parent_pid":"x"}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		st, err := decodeStatus(strings.NewReader(text))
		if err != nil {
			return
		}
		if _, err := json.Marshal(st.withLists()); err != nil {
			t.Errorf("the status of %q cannot be written again: %v", text, err)
		}
	})
}
