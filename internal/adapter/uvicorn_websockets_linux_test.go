package adapter

import (
	"fmt"
	"testing"
	"time"

	"gapless/internal/channel"

	"github.com/coder/websocket"
)

func webSocket(t *testing.T, w *worker) *websocket.Conn {
	t.Helper()
	ws, resp, err := websocket.Dial(t.Context(), "ws://"+w.addr+"/", nil)
	if resp != nil && resp.Body != nil {
		resp.Body.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ws.CloseNow() })
	return ws
}

// WebSockets stay until shortly before the deadline, and are then closed with the word that to connect again is worth while:
// those of each library that uvicorn may use for them.
func TestUvicorn_WebSockets(t *testing.T) {
	for _, library := range []string{"wsproto", "websockets"} {
		t.Run(library, func(t *testing.T) {
			t.Parallel()
			with(t, webSocketStays, "--ws", library)
		})
	}
}

func webSocketStays(t *testing.T, w *worker, _ string) {
	ws := webSocket(t, w)
	echo := func(text string) error {
		if err := ws.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
			return err
		}
		_, got, err := ws.Read(t.Context())
		if err == nil && string(got) != text {
			err = fmt.Errorf("got %q, want %q", got, text)
		}
		return err
	}
	if err := echo("before"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	r := w.drain(channel.Drain{Deadline: 4 * time.Second, Handoff: true})
	first := next[channel.Status](w, nil)
	if first.Connections != 1 || first.InFlight != 0 {
		t.Errorf("got %+v", first)
	}
	if err := echo("while it drains"); err != nil {
		t.Fatal(err)
	}
	if s := next(w, func(s channel.Status) bool { return s.Bytes > 0 }); s.Bytes < 30 {
		t.Errorf("%d bytes have moved", s.Bytes)
	}
	none(t, r)
	_, _, err := ws.Read(t.Context())
	if code := websocket.CloseStatus(err); code != websocket.StatusServiceRestart {
		t.Errorf("ended with %v, want %d", err, websocket.StatusServiceRestart)
	}
	if took := time.Since(began); took < 2900*time.Millisecond {
		t.Errorf("closed after %v", took)
	}
	w.ends()
}
