package relay

import (
	"fmt"
	"os"
	"time"

	"gapless/internal/packet"
)

// sendTimeout bounds an order to a relay that does not read.
const sendTimeout = time.Second

// Client is the master's side of a relay. Its methods may be called concurrently.
type Client struct{ conn *packet.Conn }

// NewClient uses an end of a packet pair whose other end is the relay's Config.Orders.
func NewClient(conn *packet.Conn) *Client { return &Client{conn} }

// Sweep has the relay accept and carry all that waits at listening sockets of one target at this moment. The files stay
// the caller's.
func (c *Client) Sweep(target Target, listeners ...*os.File) error {
	return c.send(order{Kind: orderSweep, Target: target}, listeners)
}

// Serve has the relay accept at a listening socket of its own, until it drains, and carry what it accepts to target. The
// file stays the caller's.
func (c *Client) Serve(target Target, listener *os.File) error {
	return c.send(order{Kind: orderServe, Target: target}, []*os.File{listener})
}

// Carry gives the relay accepted connections from which nobody has read. After success the caller closes its copies.
func (c *Client) Carry(target Target, connections ...*os.File) error {
	return c.send(order{Kind: orderCarry, Target: target}, connections)
}

// UseQueue names the sending end of the handoff queue of the generation that serves; nil means that it takes none.
func (c *Client) UseQueue(send *os.File) error {
	if send == nil {
		return c.send(order{Kind: orderQueue}, nil)
	}
	return c.send(order{Kind: orderQueue}, []*os.File{send})
}

// Drain has the relay take nothing more and end after its last connection.
func (c *Client) Drain() error { return c.send(order{Kind: orderDrain}, nil) }

// Status waits for the relay's next report; the error is io.EOF when it has ended.
func (c *Client) Status() (Status, error) {
	var s Status
	files, err := c.conn.Receive(&s)
	packet.CloseAll(files) // a relay sends none
	return s, err
}

// File returns a duplicate of the connection's descriptor, for the next master.
func (c *Client) File() (*os.File, error) { return c.conn.File() }

// Close closes this process's copy. The relay drains when the last copy is closed.
func (c *Client) Close() error { return c.conn.Close() }

func (c *Client) send(o order, files []*os.File) error {
	if err := c.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return fmt.Errorf("relay: %s: %w", o.Kind, err)
	}
	if err := c.conn.Send(o, files...); err != nil {
		return fmt.Errorf("relay: %s: %w", o.Kind, err)
	}
	return nil
}
