package control_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gapless/internal/control"
	"gapless/internal/control/controltest"
)

// serve starts a server for ctl and returns its socket. end ends the server and waits for it.
func serve(t *testing.T, ctl control.Controller) (path string, end func()) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "gc")
	if err != nil {
		t.Fatal(err)
	}
	l, err := control.Listen(filepath.Join(dir, "c.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- control.Serve(ctx, l, ctl, nil) }()
	done := false
	end = func() {
		if done {
			return
		}
		done = true
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
		_ = os.RemoveAll(dir)
	}
	t.Cleanup(end)
	return l.Path(), end
}

func dial(t *testing.T, path string) *control.Client {
	t.Helper()
	c, err := control.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// ask sends a request as curl would.
func ask(t *testing.T, path, method, target, body string) (*http.Response, string) {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://localhost"+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := transport.RoundTrip(req)
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

func TestServer_Answers(t *testing.T) {
	for _, tt := range []struct {
		name, method, target, body string
		fake                       *controltest.Fake // nil: one that succeeds
		status                     int
		want                       string // in the answer
		call                       string // what the controller got
	}{
		{name: "status", method: "GET", target: "/v1/status", status: 200, want: `"generations":[]`, call: "status"},
		{name: "status of none", method: "GET", target: "/v1/status", fake: &controltest.Fake{Err: control.ErrNoMaster}, status: 503, want: `"code":"no_master"`, call: "status"},
		{name: "upgrade", method: "POST", target: "/v1/upgrade", fake: &controltest.Fake{Outcome: control.Result{OK: true, Generation: 2}}, status: 200, want: `{"result":{"ok":true,"generation":2,`, call: "upgrade {}"},
		{name: "upgrade that waits", method: "POST", target: "/v1/upgrade", body: `{"wait_drained":true}`, status: 200, want: `"result"`, call: "upgrade {WaitDrained:true}"},
		{name: "aborted upgrade", method: "POST", target: "/v1/upgrade?wait=true", fake: &controltest.Fake{Outcome: control.Result{Reason: "exit status 1"}}, status: 200, want: `"ok":false`, call: "upgrade {}"},
		{name: "busy", method: "POST", target: "/v1/upgrade", fake: &controltest.Fake{Err: control.ErrBusy}, status: 409, want: `"busy":true`, call: "upgrade {}"},
		{name: "invalid as a result", method: "POST", target: "/v1/upgrade", fake: &controltest.Fake{Outcome: control.Result{Invalid: true}}, status: 400, want: `"invalid":true`, call: "upgrade {}"},
		{name: "busy as a result", method: "POST", target: "/v1/reload", fake: &controltest.Fake{Outcome: control.Result{Busy: true}}, status: 409, want: `"busy":true`, call: "reload {}"},
		{name: "no master", method: "POST", target: "/v1/reload", fake: &controltest.Fake{Err: control.ErrNoMaster}, status: 503, want: `"code":"no_master"`, call: "reload {}"},
		{name: "a failure", method: "POST", target: "/v1/reload", fake: &controltest.Fake{Err: errors.New("it broke")}, status: 500, want: `"message":"it broke"`, call: "reload {}"},
		{name: "scale", method: "POST", target: "/v1/scale", body: `{"workers":4}`, status: 200, want: `"result"`, call: "scale {Workers:4}"},
		{name: "scale to nothing", method: "POST", target: "/v1/scale", body: `{}`, status: 400, want: "1 to 4096"},
		{name: "scale without a body", method: "POST", target: "/v1/scale", status: 400, want: "1 to 4096"},
		{name: "scale too far", method: "POST", target: "/v1/scale", body: `{"workers":4097}`, status: 400, want: "1 to 4096"},
		{name: "scale by text", method: "POST", target: "/v1/scale", body: `{"workers":"4"}`, status: 400, want: "parse"},
		{name: "stop", method: "POST", target: "/v1/stop", body: ` {"now":true} `, status: 200, want: `"result"`, call: "stop {Now:true}"},
		{name: "an unknown field", method: "POST", target: "/v1/upgrade", body: `{"canary":true}`, status: 400, want: "canary"},
		{name: "garbage", method: "POST", target: "/v1/upgrade", body: "\x00\xff", status: 400, want: "bad_request"},
		{name: "null", method: "POST", target: "/v1/upgrade", body: "null", status: 400, want: "bad_request"},
		{name: "two objects", method: "POST", target: "/v1/upgrade", body: "{}{}", status: 400, want: "goes on"},
		{name: "an object and garbage", method: "POST", target: "/v1/upgrade", body: "{}x", status: 400, want: "goes on"},
		{name: "too much", method: "POST", target: "/v1/upgrade", body: strings.Repeat(" ", 65<<10), status: 400, want: "too large"},
		{name: "an unknown parameter", method: "POST", target: "/v1/upgrade?stage=1", status: 400, want: "stage"},
		{name: "a bad parameter", method: "POST", target: "/v1/upgrade?wait=maybe", status: 400, want: "true or false"},
		{name: "a bad query", method: "POST", target: "/v1/upgrade?%zz", status: 400, want: "bad_request"},
		{name: "a parameter of status", method: "GET", target: "/v1/status?wait=false", status: 400, want: "wait"},
		{name: "the wrong method", method: "GET", target: "/v1/upgrade", status: 405, want: "takes POST"},
		{name: "the other wrong method", method: "POST", target: "/v1/status", status: 405, want: "takes GET"},
		{name: "an unknown path", method: "GET", target: "/v1/workers", status: 404, want: "/v1/workers"},
		{name: "an unknown version", method: "GET", target: "/v2/status", status: 404, want: "not_found"},
		{name: "a path that goes up", method: "GET", target: "/v1/../v1/status", status: 404, want: "not_found"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fake := tt.fake
			if fake == nil {
				fake = &controltest.Fake{}
			}
			path, end := serve(t, fake)
			resp, text := ask(t, path, tt.method, tt.target, tt.body)
			if resp.StatusCode != tt.status || !strings.Contains(text, tt.want) {
				t.Errorf("got %d %q, want %d and %q", resp.StatusCode, text, tt.status, tt.want)
			}
			for l := range strings.Lines(text) {
				if !json.Valid([]byte(l)) {
					t.Errorf("%q is no JSON", l)
				}
			}
			if resp.StatusCode == 405 && resp.Header.Get("Allow") == "" {
				t.Error("405 without Allow")
			}
			end()
			if got := strings.Join(fake.Calls(), ", "); got != tt.call {
				t.Errorf("the controller got %q, want %q", got, tt.call)
			}
		})
	}
}

func TestServer_StreamsEventsAsTheyHappen(t *testing.T) {
	slot := 1
	events := []control.Event{{Kind: control.KindUpgrade, State: "starting", Ready: 0, Total: 2}, {Kind: control.KindWorker, Worker: &slot, State: "ready"}}
	fake := &controltest.Fake{Events: events, Hold: make(chan struct{}), Outcome: control.Result{OK: true, Generation: 7, Tail: []string{"a\tb"}}}
	path, _ := serve(t, fake)
	seen := make(chan control.Event, 8)
	type answer struct {
		result control.Result
		err    error
	}
	answers := make(chan answer, 1)
	c := dial(t, path)
	go func() {
		r, err := c.Upgrade(t.Context(), control.UpgradeRequest{}, func(e control.Event) { seen <- e })
		answers <- answer{r, err}
	}()
	for i, want := range events {
		if got := <-seen; got.Kind != want.Kind || got.State != want.State {
			t.Errorf("event %d is %+v, want %+v", i, got, want)
		}
	}
	close(fake.Hold) // only now may the outcome come
	got := <-answers
	if got.err != nil || !got.result.OK || got.result.Generation != 7 || !slices.Equal(got.result.Tail, []string{"a\tb"}) {
		t.Errorf("the outcome is %+v", got)
	}
}

func TestServer_AClientThatGoesAwayChangesNothing(t *testing.T) {
	for _, tt := range []struct {
		name  string
		leave func(t *testing.T, path string)
	}{
		{"its process ends", func(t *testing.T, path string) {
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(conn, "POST /v1/upgrade HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
			if _, err := conn.Read(make([]byte, 1)); err != nil { // the operation has begun
				t.Fatal(err)
			}
			if err := conn.Close(); err != nil {
				t.Fatal(err)
			}
		}},
		{"its patience ends", func(t *testing.T, path string) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			_, err := dial(t, path).Upgrade(ctx, control.UpgradeRequest{}, func(control.Event) { cancel() })
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Upgrade = %v", err)
			}
		}},
		{"it does not wait", func(t *testing.T, path string) {
			c := dial(t, path)
			c.NoWait = true
			if r, err := c.Upgrade(t.Context(), control.UpgradeRequest{}, nil); err != nil || !r.OK {
				t.Errorf("Upgrade = %+v, %v", r, err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			done := make(chan error, 1)
			fake := &watched{Fake: controltest.Fake{Events: []control.Event{{Kind: control.KindLog, Text: "on it"}}, Hold: make(chan struct{})}, done: done}
			path, _ := serve(t, fake)
			tt.leave(t, path)
			if _, err := dial(t, path).Status(t.Context()); err != nil {
				t.Errorf("the next client gets %v", err)
			}
			select {
			case err := <-done:
				t.Errorf("the operation ended with its client: %v", err)
			default:
			}
			close(fake.Hold)
			if err := <-done; err != nil {
				t.Errorf("the operation failed: %v", err)
			}
		})
	}
}

// watched tells the end of an upgrade.
type watched struct {
	controltest.Fake
	done chan error
}

func (w *watched) Upgrade(ctx context.Context, req control.UpgradeRequest, progress func(control.Event)) (control.Result, error) {
	r, err := w.Fake.Upgrade(ctx, req, progress)
	w.done <- err
	return r, err
}

func TestServer_EndsWithItsParent(t *testing.T) {
	fake := &controltest.Fake{Hold: make(chan struct{}), Events: []control.Event{{Kind: control.KindLog, Text: "on it"}}}
	path, end := serve(t, fake)
	begun, told := make(chan struct{}), make(chan error, 2)
	c := dial(t, path)
	go func() {
		_, err := c.Stop(t.Context(), control.StopRequest{}, func(control.Event) { close(begun) })
		told <- err
	}()
	<-begun
	subscribed := make(chan struct{})
	go func() { told <- c.Subscribe(t.Context(), func(control.Event) { close(subscribed) }) }()
	<-subscribed
	end()
	var outcomes []string
	for range 2 {
		outcomes = append(outcomes, fmt.Sprint(<-told))
	}
	slices.Sort(outcomes)
	if want := []string{"<nil>", "stop: context canceled"}; !slices.Equal(outcomes, want) {
		t.Errorf("the clients were told %q, want %q", outcomes, want)
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket is still there")
	}
}

func TestServer_GarbageOnTheWire(t *testing.T) {
	fake := &controltest.Fake{}
	path, _ := serve(t, fake)
	for _, text := range []string{
		"\x00\x01\x02\x03\r\n\r\n", "GET\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"POST /v1/stop HTTP/1.1\r\n\r\n", "POST /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
		"GET /v1/status HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 64<<10) + "\r\n\r\n",
	} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, text)
		answer, _ := io.ReadAll(conn) // a reset is an answer too
		if len(answer) > 0 && !bytes.HasPrefix(answer, []byte("HTTP/1.1 4")) {
			t.Errorf("%.40q was answered %.40q", text, answer)
		}
		_ = conn.Close()
	}
	if calls := fake.Calls(); len(calls) != 0 {
		t.Errorf("garbage was taken for %q", calls)
	}
}

func TestServer_ASlowReaderHoldsNobodyUp(t *testing.T) {
	many := make([]control.Event, 50_000)
	for i := range many {
		many[i] = control.Event{Kind: control.KindLog, Text: "something happened"}
	}
	fake := &controltest.Fake{Events: many, Outcome: control.Result{OK: true}}
	path, end := serve(t, fake)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := conn.Read(make([]byte, 1)); err != nil { // and nothing more
		t.Fatal(err)
	}
	r, err := dial(t, path).Upgrade(t.Context(), control.UpgradeRequest{}, nil)
	if err != nil || !r.OK {
		t.Errorf("another client's upgrade: %+v, %v", r, err)
	}
	end()
}

func TestClient_WithoutAParent(t *testing.T) {
	dir := t.TempDir()
	if _, err := control.Dial(t.Context(), filepath.Join(dir, "none.sock")); !errors.Is(err, control.ErrNotRunning) {
		t.Errorf("Dial without a socket = %v, want ErrNotRunning", err)
	}
	path, end := serve(t, &controltest.Fake{Err: control.ErrNoMaster})
	c := dial(t, path)
	if _, err := c.Status(t.Context()); !errors.Is(err, control.ErrNoMaster) {
		t.Errorf("Status = %v, want ErrNoMaster", err)
	}
	if _, err := c.Reload(t.Context(), control.ReloadRequest{}, nil); !errors.Is(err, control.ErrNoMaster) {
		t.Errorf("Reload = %v, want ErrNoMaster", err)
	}
	end()
	if _, err := c.Status(t.Context()); !errors.Is(err, control.ErrNotRunning) {
		t.Errorf("Status after the end = %v, want ErrNotRunning", err)
	}
}
