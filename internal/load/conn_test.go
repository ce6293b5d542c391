package load

import (
	"context"
	"net"
	"testing"
	"time"
)

// Whatever a server says, and wherever it stops: each request has exactly one outcome, and the reader ends.
func FuzzConn(f *testing.F) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
	for _, seed := range []string{
		"", "\x00", ok, ok + ok, ok + ok + ok, ok + ok + ok + ok, ok + "H", "HTTP/1.1 100 Continue\r\n\r\n" + ok,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n" + ok,
		"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhi", "HTTP/1.0 200 OK\r\n\r\nhi", "HTTP/1.1 204 No Content\r\n\r\n" + ok,
		"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\n\r\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, said string) {
		client, server := net.Pipe()
		c := newConn(client)
		var requests []*request
		for _, method := range []string{"GET", "POST", "GET"} {
			requests = append(requests, &request{method: method, done: make(chan outcome, 1)})
		}
		c.await(requests)
		server.SetDeadline(time.Now().Add(10 * time.Second))
		server.Write([]byte(said)) // fails when the client has had enough
		server.Close()
		<-c.stopped
		good := true
		for i, r := range requests {
			o := <-r.done
			if o.at.IsZero() || (o.class == "") != (o.err == nil) {
				t.Errorf("request %d: %+v", i, o)
			}
			if o.class == "" && !good {
				t.Errorf("request %d was answered after one that was not", i)
			}
			good = o.class == ""
		}
		if late := (&request{done: make(chan outcome, 1)}); true {
			c.await([]*request{late})
			if o := <-late.done; o.class == "" {
				t.Error("a request on a connection that has ended was answered")
			}
		}
		c.close()
	})
}

// An answer that comes after its request was given up is no close by the server.
func TestConn_LateAnswerIsNoClose(t *testing.T) {
	client, server := net.Pipe()
	defer server.Close()
	c := newConn(client)
	r := &request{method: "GET", done: make(chan outcome, 1)}
	c.await([]*request{r})
	c.abort(failure(time.Now(), context.Canceled, false))
	if o := <-r.done; o.class != canceled {
		t.Errorf("outcome %+v", o)
	}
	if _, err := server.Write([]byte("H")); err != nil {
		t.Fatal(err)
	}
	<-c.stopped
	if how := c.close(); how != ours {
		t.Errorf("it ended as %d, want by us", how)
	}
}
