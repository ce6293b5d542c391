package app

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

func start(t *testing.T) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(New(Info{Generation: 7, Worker: 2, PID: 812}))
	t.Cleanup(s.Close)
	return s
}

func do(t *testing.T, method, url, accept, body string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept", accept)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

func TestApp_Answers(t *testing.T) {
	s := start(t)
	const browser = "text/html,application/xhtml+xml,*/*;q=0.8"
	for _, tc := range []struct {
		name, method, path, accept, body string
		status                           int
		kind, want                       string
	}{
		{"json", "GET", "/", "*/*", "", 200, "application/json", `{"generation":7,"worker":2,"pid":812}` + "\n"},
		{"page", "GET", "/", browser, "", 200, "text/html; charset=utf-8", "<dd id=\"pid\">812</dd>"},
		{"length", "POST", "/", "", "hello", 200, "application/json", `{"generation":7,"worker":2,"pid":812,"length":5}` + "\n"},
		{"echo", "POST", "/echo", "", "hello", 200, "application/octet-stream", "hello"},
		{"slow", "GET", "/slow?ms=3", "", "", 200, "application/json", `"ms":3`},
		{"slow, not a number", "GET", "/slow?ms=soon", "", "", 400, "text/plain; charset=utf-8", `ms: want a number from 0 to 600000, got "soon"`},
		{"stream", "GET", "/stream?n=3&ms=1", "", "", 200, "text/plain; charset=utf-8", "0\n1\n2\n"},
		{"stream, negative", "GET", "/stream?n=-1", "", "", 400, "text/plain; charset=utf-8", "n: want"},
		{"health", "GET", "/healthz", "", "", 200, "text/plain; charset=utf-8", "ok\n"},
		{"elsewhere", "GET", "/moon", "", "", 404, "text/plain; charset=utf-8", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp, text := do(t, tc.method, s.URL+tc.path, tc.accept, tc.body)
			if resp.StatusCode != tc.status || resp.Header.Get("Content-Type") != tc.kind || !strings.Contains(text, tc.want) {
				t.Errorf("got %d %q %q", resp.StatusCode, resp.Header.Get("Content-Type"), text)
			}
			if got := resp.Header.Get(HeaderGeneration); got != "7" {
				t.Errorf("%s is %q", HeaderGeneration, got)
			}
		})
	}
}

func TestApp_PageHoldsValidValues(t *testing.T) {
	s := start(t)
	_, text := do(t, "GET", s.URL, "text/html", "")
	if !strings.Contains(text, "generation:  7 , worker:  2 , pid:  812") {
		t.Errorf("the script's values are not numbers: %s", text[strings.Index(text, "paint({"):][:80])
	}
}

func TestApp_EchoesWebSocketMessages(t *testing.T) {
	s := start(t)
	c, resp, err := websocket.Dial(t.Context(), strings.Replace(s.URL, "http", "ws", 1)+"/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.CloseNow() }()
	if got := resp.Header.Get(HeaderGeneration); got != "7" {
		t.Errorf("%s is %q", HeaderGeneration, got)
	}
	for _, m := range []string{"one", "", strings.Repeat("x", 10_000)} {
		if err := c.Write(t.Context(), websocket.MessageText, []byte(m)); err != nil {
			t.Fatal(err)
		}
		kind, got, err := c.Read(t.Context())
		if err != nil || kind != websocket.MessageText || string(got) != m {
			t.Fatalf("got %v, %q, %v", kind, got, err)
		}
	}
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
}

func TestMain_RefusesArguments(t *testing.T) {
	for name, args := range map[string][]string{"argument": {"moon"}, "flag": {"-moon"}} {
		t.Run(name, func(t *testing.T) {
			if err := Main(args, io.Discard); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestInfo_NamesAreAContract(t *testing.T) {
	text, err := json.Marshal(Info{1, 2, 3})
	if err != nil || string(text) != `{"generation":1,"worker":2,"pid":3}` {
		t.Errorf("got %s, %v", text, err)
	}
}
