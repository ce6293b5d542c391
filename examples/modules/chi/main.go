// Command chi serves a chi router; any other router is an http.Handler as well.
package main

import (
	"fmt"
	"log"
	"net/http"

	"github.com/go-chi/chi/v5"

	"gapless"
)

func main() {
	r := chi.NewRouter()
	r.Get("/", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "hello from generation %d\n", gapless.Generation())
	})
	if err := gapless.Serve(&http.Server{Addr: "127.0.0.1:8000", Handler: r}); err != nil {
		log.Fatal(err)
	}
}
