package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"
)

// maxResponse bounds the body of one response that is kept for comparison.
const maxResponse = 128 << 20

// conn is one connection. Its reader goroutine gives each response to the request that waits for it, in order, and
// notes when the connection ended. It lives until close, which waits for it.
type conn struct {
	nc      net.Conn
	stopped chan struct{} // closed by read when it returns

	mu      sync.Mutex
	pending []*request // on the wire, not answered
	ended   bool       // nothing more will be read
	endAt   time.Time  // when the end was read
	endErr  error      // what the end was
	local   bool       // close or abort was called: the end is our own doing
	how     ending     // read by close, written by the reader before stopped
}

// ending says how a connection ended.
type ending int

const (
	ours        ending = iota // we closed it, or it ended under a request, whose outcome tells of it
	unannounced               // the server ended it with nothing on the wire and without a word
	announced                 // the server said before that it would: Connection: close, or a close frame
)

func newConn(nc net.Conn) *conn {
	c := &conn{nc: nc, stopped: make(chan struct{})}
	go c.read()
	return c
}

// endedBy reports whether the end of the connection had been read at a time.
func (c *conn) endedBy(t time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended && !c.endAt.After(t)
}

// await registers requests as on the wire. On a connection that has ended they get that end as their outcome, as a far
// client would learn it.
func (c *conn) await(requests []*request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		for _, r := range requests {
			r.done <- failure(time.Now(), c.endErr, false)
		}
		return
	}
	c.pending = append(c.pending, requests...)
}

// abort gives an outcome to what is still waited for: after a failed write or a timeout. It ends the connection from our
// side: an answer that comes late is not the server's fault.
func (c *conn) abort(o outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.local = true
	for _, r := range c.pending {
		r.done <- o
	}
	c.pending = nil
}

// close ends the connection from our side, waits for its reader and reports whether the server had ended it before.
func (c *conn) close() ending {
	c.mu.Lock()
	c.local = true
	c.mu.Unlock()
	c.nc.Close()
	<-c.stopped
	return c.how
}

func (c *conn) read() {
	defer close(c.stopped)
	br := bufio.NewReader(c.nc)
	for {
		if _, err := br.Peek(1); err != nil {
			c.end(time.Now(), err, false)
			return
		}
		c.mu.Lock()
		if len(c.pending) == 0 {
			c.mu.Unlock()
			c.end(time.Now(), errUnsolicited, false)
			return
		}
		r := c.pending[0]
		c.mu.Unlock()
		o := readResponse(br, r.method)
		if o.class == "" {
			c.answer(r, o)
			if r.handshake && o.status == http.StatusSwitchingProtocols {
				c.readFrames(br)
				return
			}
			if !o.closes {
				continue
			}
			c.end(o.at, io.EOF, false) // seen together with the response, also by what was pipelined behind it
			c.how = announced
			return
		}
		c.end(o.at, o.err, true)
		return
	}
}

func (c *conn) answer(r *request, o outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending) > 0 && c.pending[0] == r { // else it has timed out
		c.pending = c.pending[1:]
		r.done <- o
	}
}

// end notes the end of the connection and fails what was on the wire; the first of these had begun to be answered if
// cut is set.
func (c *conn) end(at time.Time, err error, cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended, c.endAt, c.endErr = true, at, err
	if len(c.pending) == 0 && !c.local {
		c.how = unannounced
	}
	for i, r := range c.pending {
		r.done <- failure(at, err, cut && i == 0)
	}
	c.pending = nil
}

var errUnsolicited = errors.New("the server sent what nobody had asked for")

// readResponse reads one final response whose first byte is there.
func readResponse(br *bufio.Reader, method string) outcome {
	for {
		resp, err := http.ReadResponse(br, &http.Request{Method: method}) //nolint:bodyclose // it reads from br, and is read to its end below
		if err != nil {
			return failure(time.Now(), fmt.Errorf("read the head: %w", noEOF(err)), true)
		}
		if resp.StatusCode < 200 && resp.StatusCode != http.StatusSwitchingProtocols {
			continue
		}
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse+1))
		if err == nil && len(body) > maxResponse {
			return failure(time.Now(), fmt.Errorf("a body of more than %d bytes, which is not read to its end", maxResponse), true)
		}
		if err != nil {
			return failure(time.Now(), fmt.Errorf("read the body after %d bytes: %w", len(body), noEOF(err)), true)
		}
		return outcome{at: time.Now(), status: resp.StatusCode, header: resp.Header, body: body, closes: resp.Close}
	}
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// failure classes the end of a connection under a request.
func failure(at time.Time, err error, cut bool) outcome {
	o := outcome{at: at, err: err, class: classOf(err)}
	if cut {
		o.class = Cut
	}
	return o
}

func classOf(err error) Class {
	switch {
	case errors.Is(err, context.Canceled):
		return canceled
	case isTimeout(err):
		return Timeout
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.EAGAIN):
		return Refused // the last two: a unix socket that is gone, or whose queue is full
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.EADDRNOTAVAIL),
		errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EACCES),
		errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENETUNREACH):
		return local
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF): // the latter: TLS, without its own goodbye
		return EOF
	case errors.Is(err, errFarewell):
		return crossed
	case errors.Is(err, errFrame):
		return Body
	case errors.Is(err, errUnsolicited):
		return Status // such as a 408 on an idle connection: it stands where the response should
	}
	return Reset // ECONNRESET, EPIPE, and what other systems call these
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}
