// Command nethttp is the smallest program that gapless can replace unnoticed.
package main

import (
	"fmt"
	"log"
	"net/http"

	"gapless"
)

func main() {
	http.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "hello from generation %d\n", gapless.Generation())
	})
	if err := gapless.Serve(&http.Server{Addr: "127.0.0.1:8000"}); err != nil {
		log.Fatal(err)
	}
}
