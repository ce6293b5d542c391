// Command h2c speaks HTTP/1.1 and HTTP/2 without TLS on one port. Connections
// of the first kind move to the next generation; those of the second get a
// GOAWAY, and their clients connect again without losing a request.
package main

import (
	"fmt"
	"log"
	"net/http"

	"gapless"
)

func main() {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{
		Addr:      "127.0.0.1:8000",
		Protocols: protocols,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "hello over %s from generation %d\n", r.Proto, gapless.Generation())
		}),
	}
	if err := gapless.Serve(srv); err != nil {
		log.Fatal(err)
	}
}
