// Command grpc serves the health service. A gRPC server is no http.Server, so
// it takes its listener from Listen and drains in its own way: GOAWAY, and the
// calls in flight finish.
package main

import (
	"log"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"gapless"
)

func main() {
	l, err := gapless.Listen("127.0.0.1:8000")
	if err != nil {
		log.Fatal(err)
	}
	srv := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(srv, health.NewServer())

	draining, drained := gapless.Draining(), make(chan struct{})
	go func() {
		defer close(drained)
		<-draining
		srv.GracefulStop()
	}()
	if err := srv.Serve(l); err != nil {
		log.Fatal(err)
	}
	<-drained
}
