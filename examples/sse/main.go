// Command sse streams server-sent events. A stream goes on while the worker
// drains; near the end of the drain it is ended between two events, and the
// browser asks the new generation to go on behind the last one.
package main

import (
	"fmt"
	"log"
	"net/http"
	"strconv"
	"time"

	"gapless"
)

func main() {
	http.HandleFunc("GET /{$}", events)
	if err := gapless.Serve(&http.Server{Addr: "127.0.0.1:8000"}); err != nil {
		log.Fatal(err)
	}
}

func events(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := gapless.Linger(r.Context())
	defer cancel()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	rc := http.NewResponseController(w)

	n, _ := strconv.Atoi(r.Header.Get("Last-Event-ID")) // 0 for a new client
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		n++
		fmt.Fprintf(w, "id: %d\nretry: 100\ndata: generation %d\n\n", n, gapless.Generation())
		if err := rc.Flush(); err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
