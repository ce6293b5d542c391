package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// bufferSize is what one direction of a connection takes, in bytes.
const bufferSize = 32 << 10

// stream is a TCP or unix connection.
type stream interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// fileConn makes a connection of a received descriptor. It closes f.
func fileConn(f *os.File) (stream, error) {
	defer func() { _ = f.Close() }() // net.FileConn works on a duplicate
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("not a connection: %w", err)
	}
	s, ok := c.(stream)
	if !ok {
		return nil, errors.Join(fmt.Errorf("a %T cannot be carried", c), c.Close())
	}
	return s, nil
}

// join copies both ways until both ends have said all, passing the end of each direction on by itself, and then closes
// both. When ctx ends first it cuts them.
//
// A client that resets has the server's connection reset, too. When the server stops reading, as after an early error
// response, what it has still to say is delivered first.
func join(ctx context.Context, client, server stream) {
	cut := context.AfterFunc(ctx, func() {
		reset(client)
		reset(server)
	})
	defer cut()
	var directions sync.WaitGroup
	directions.Go(func() {
		if fromClient, _ := forward(server, client); fromClient != nil {
			reset(server)
		}
	})
	directions.Go(func() {
		if fromServer, toClient := forward(client, server); fromServer != nil || toClient != nil {
			// Nothing more can come; closing now, with or without unread bytes of the client, tells it what a direct
			// connection would.
			_ = client.Close()
		}
	})
	directions.Wait()
	_ = client.Close()
	_ = server.Close()
}

// forward copies until src ends and passes that on. The two kinds of errors mean different things to join, which
// io.Copy does not keep apart.
func forward(dst, src stream) (readErr, writeErr error) {
	buf := make([]byte, bufferSize)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return nil, err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil, dst.CloseWrite()
		}
		if err != nil {
			return err, nil
		}
	}
}

// reset closes a connection so that the peer notices that something was lost.
func reset(c stream) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}
