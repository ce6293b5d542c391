package verify

import (
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"

	"gapless/internal/load"
)

func TestMix(t *testing.T) {
	tests := []struct {
		name  string
		mix   Mix
		kinds []string // of the streams
		err   string
	}{
		{"the built-in app", Mix{BuiltIn: true}, []string{KindKeepAlive, KindKeepAlive, KindNew, KindSilent, KindSlow, KindWebSocket}, ""},
		{"any server", Mix{}, []string{KindKeepAlive, KindNew, KindSilent}, ""},
		{"the built-in app, one path", Mix{BuiltIn: true, Path: "/healthz"}, []string{KindKeepAlive, KindNew, KindSilent, KindSlow, KindWebSocket}, ""},
		{"with slow requests and WebSockets", Mix{Slow: "/slow", WS: "/ws"}, []string{KindKeepAlive, KindNew, KindSilent, KindSlow, KindWebSocket}, ""},
		{"chosen kinds", Mix{Kinds: []string{KindNew, KindSilent}}, []string{KindNew, KindSilent}, ""},
		{"no such kind", Mix{Kinds: []string{"fast"}}, nil, `"fast" is no kind`},
		{"none left", Mix{Kinds: []string{KindSlow}}, nil, "none"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.mix.Rate = 300
			all, err := tt.mix.Streams()
			if tt.err != "" {
				if err == nil {
					t.Fatal("no error")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var kinds []string
			rate := 0.0
			for _, s := range all {
				kinds = append(kinds, s.kind())
				rate += s.Rate
				if err := s.Validate(); err != nil {
					t.Errorf("%s: %v", s.Name, err)
				}
			}
			if !slices.Equal(kinds, tt.kinds) || math.Abs(rate-300) > 0.1 {
				t.Errorf("%v at %.1f a second, want %v at 300", kinds, rate, tt.kinds)
			}
		})
	}
}

func TestParseRequests(t *testing.T) {
	m := Mix{Rate: 100, Connections: 5, Header: http.Header{"Authorization": {"Bearer x"}}}
	all, err := ParseRequests([]byte(`
- path: /items
- name: create
  method: post
  path: /items?x=1
  header: {Content-Type: application/json}
  body: '{"name": "x"}'
  status: 201
  rate: 12.5
  connections: 3
- {kind: websocket, path: /ws}
- {kind: slow, path: /report}
- {kind: silent}
`), m)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 5 {
		t.Fatalf("%d requests", len(all))
	}
	if s := all[0]; s.Path != "/items" || s.Method != "GET" || s.Rate != 20 || s.Connections != 5 || !s.AnyStatus || s.Header.Get("Authorization") != "Bearer x" {
		t.Errorf("%+v", s)
	}
	if s := all[1]; s.Name != "create" || s.Method != "POST" || string(s.Payload) != `{"name": "x"}` || s.Status != 201 || s.AnyStatus || s.Rate != 12.5 ||
		s.Connections != 3 || s.Header.Get("Content-Type") != "application/json" || s.Header.Get("Authorization") != "Bearer x" {
		t.Errorf("%+v", s)
	}
	if all[2].Kind != load.WebSocket || !all[3].Slow || all[4].Kind != load.Silent {
		t.Errorf("kinds %v %v %v", all[2].Kind, all[3].Slow, all[4].Kind)
	}
	if m.Header.Get("Content-Type") != "" {
		t.Error("a request's header was given to all")
	}
}

func TestParseRequests_Refuses(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"nothing", "", "no request"},
		{"no list", "path: /", ""},
		{"an unknown key", "- {pfad: /}", "pfad"},
		{"a kind", "- {kind: fast}", "kind"},
		{"a path", "- {path: items}", "path"},
		{"a body of a GET", "- {body: x}", "payload"},
		{"a status", "- {status: 99}", "status"},
		{"a header of ours", "- {header: {Connection: close}}", "Connection"},
		{"a header that splits", "- {header: {X: \"a\\r\\nb\"}}", "header"},
		{"a rate", "- {rate: -1}", "rate"},
		{"a method", "- {method: 'GET /'}", "method"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseRequests([]byte(tt.text), Mix{})
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, want one line about %q", err, tt.want)
			}
		})
	}
}

func FuzzParseRequests(f *testing.F) {
	for _, seed := range []string{"", "- {}", "- path: /x\n  rate: 1e9", "- {kind: websocket}", "- &a {path: /}\n- *a", "[", "- {connections: 99999999}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := ParseRequests(text, Mix{})
		if err != nil {
			return
		}
		for _, s := range all {
			if err := s.Validate(); err != nil {
				t.Errorf("%q was taken: %v", text, err)
			}
		}
	})
}
