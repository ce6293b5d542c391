// Command websocket echoes messages. When its worker drains, each client is
// told to connect again (close code 1012), as late as the drain allows and not
// all at one moment.
package main

import (
	"context"
	"errors"
	"log"
	"net/http"

	"github.com/coder/websocket"

	"gapless"
)

func main() {
	http.HandleFunc("GET /{$}", echo)
	if err := gapless.Serve(&http.Server{Addr: "127.0.0.1:8000"}); err != nil {
		log.Fatal(err)
	}
}

func echo(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // Accept has answered
	}
	defer func() { _ = c.CloseNow() }()

	// A read that is cancelled would cut the connection, so the close frame is
	// sent from aside; it ends the read.
	ctx, cancel := gapless.Linger(r.Context())
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		if errors.Is(context.Cause(ctx), gapless.ErrDraining) {
			_ = c.Close(websocket.StatusServiceRestart, "connect again")
		}
	})()

	for {
		kind, message, err := c.Read(r.Context())
		if err != nil {
			return
		}
		if err := c.Write(r.Context(), kind, message); err != nil {
			return
		}
	}
}
