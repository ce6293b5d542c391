// Package load is an honest load client: it counts what a server loses, and blames nobody for what it did itself.
//
// It speaks raw HTTP/1.1. It never retries and never looks whether a connection still lives just before it sends: what a
// real client at that distance could not know, it does not know. It is an open loop: every send has an intended
// time that is fixed before the run, and latency counts from there, so a stalled server cannot slow down its own measurement.
// By how much the client itself was late is not the server's latency: it is measured beside it, and is a fault when it is much.
//
// # Distance
//
// With Config.RTT the client stands half a round trip away from the server. A decision to send is made with a view of the
// connection that is rtt/2 old; the bytes reach the wire rtt/2 later; responses and the ends of connections are seen
// rtt/2 late. The race between a server that closes an idle connection and a request on its way thus shows on
// loopback as it does on a network. A new connection reaches the listening socket rtt/2 after the decision, and its first
// bytes follow one whole round trip later; a kernel far away would keep it half open for that time, so in this one
// respect the emulation is stricter than a network.
//
// # Invariants
//
//   - Requests = OK + Drops.Total() + Canceled + Local + Crossed: every request whose bytes were begun, or whose connection could not
//     be made, is in exactly one of them.
//   - A fault of this machine (no ports, no descriptors, timers that fire late) is never a drop, and always makes
//     Report.Fault say so.
//   - Run returns when all its goroutines and connections are gone.
//   - With the same Config the same bytes are intended at the same times.
package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

// ErrConfig marks a Config that cannot be run.
var ErrConfig = errors.New("load configuration")

// Kind says what a stream does with its connections.
type Kind string

// The kinds of streams.
const (
	KeepAlive Kind = "keep-alive" // each connection carries one send after another
	NewConn   Kind = "new-conn"   // each send opens a connection and says Connection: close
	Silent    Kind = "silent"     // as NewConn, but the connection stays silent for Stream.Silence first
	WebSocket Kind = "websocket"  // each connection is upgraded once, and each send is then a ping that wants its pong
)

// lasts says whether connections outlive their first response.
func (k Kind) lasts() bool { return k == KeepAlive || k == WebSocket }

// Defaults of Config and Stream.
const (
	DefaultTimeout     = 10 * time.Second
	DefaultMaxRequests = 1_000_000
	DefaultLagLimit    = 20 * time.Millisecond
	DefaultSilence     = 500 * time.Millisecond
)

// Config says what to send where. Address, Streams and Duration are required.
type Config struct {
	Network string // "tcp" (the default) or "unix"
	Address string // host:port, or a path
	Host    string // what the Host header says; "" = Address
	Streams []Stream

	Duration    time.Duration // sends are intended within it; what is in flight then is waited for
	Timeout     time.Duration // for connecting, and for each response from when its request is on the wire; 0 = DefaultTimeout
	MaxRequests int           // a configuration that intends more is refused; 0 = DefaultMaxRequests
	RTT         time.Duration // the emulated round trip; see the package
	LagLimit    time.Duration // a 99th percentile of our own lateness, over all sends, above it is a fault; 0 = DefaultLagLimit
	Seed        uint64        // of all that is random

	// Stop, when closed, ends the sending before Duration is over. What is in flight is waited for, and what was intended
	// later is not missed: Stop is how a load lasts as long as what happens beside it. nil = Duration alone.
	Stop <-chan struct{}

	// Events, if set, is called for each outcome and for each connection that the server ends, when that is seen. It is
	// called from many goroutines and must not block: the time that it takes is our own lateness.
	Events func(Event)

	// Blind clients find out that an idle connection was closed only by sending on it, however long ago that was.
	Blind bool

	// Dial replaces the network, for tests. nil = a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Stream is one kind of traffic. Kind defaults to KeepAlive, Method to GET, Path to "/", Status to 200.
type Stream struct {
	Name        string // for reports; empty = its kind
	Kind        Kind
	Connections int     // in use at the same time; required
	Rate        float64 // sends per second of all connections together; required

	Method  string
	Path    string
	Header  http.Header   // added to each request
	Body    int           // bytes that a POST or PUT carries; they begin with the request's ID
	Payload []byte        // instead of Body: what each request carries, as it is
	Silence time.Duration // of Silent; 0 = DefaultSilence
	Takes   time.Duration // how long an answer is known to take: sends on one connection are intended at least so far apart

	Chunked  float64 // share of the bodies that are chunked, 0 to 1
	Split    float64 // share of the sends that are cut at random bytes into 2 or 3 pieces, up to 2 ms apart
	Pipeline float64 // share of the sends that are 2 to 5 pipelined requests (KeepAlive only)

	Status int // what every response must have; of a WebSocket always 101
	// Echo demands that a response repeats the X-Request-Id header and the body of its request. Without it, an
	// X-Request-Id in the response must still be the request's.
	Echo bool
	// AnyID lets a response say another X-Request-Id: some servers write their own.
	AnyID bool
	// Check looks at a response that is complete; its error is a drop of class Body. It is called from many goroutines.
	Check func(sent, got []byte, header http.Header) error
}

// withDefaults returns a copy in which all is filled in, or an error that is ErrConfig.
func (c Config) withDefaults() (Config, error) {
	def(&c.Network, "tcp")
	def(&c.Timeout, DefaultTimeout)
	def(&c.MaxRequests, DefaultMaxRequests)
	def(&c.LagLimit, DefaultLagLimit)
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	c.Streams = append([]Stream(nil), c.Streams...)
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	switch {
	case c.Address == "":
		bad("address: is empty")
	case c.Network != "tcp" && c.Network != "unix":
		bad("network: must be tcp or unix, got %q", c.Network)
	}
	if len(c.Streams) == 0 {
		bad("streams: none, give at least one")
	}
	for _, d := range []struct {
		name string
		d    time.Duration
		min  time.Duration
	}{{"duration", c.Duration, 1}, {"timeout", c.Timeout, 1}, {"lag limit", c.LagLimit, 1}, {"rtt", c.RTT, 0}} {
		if d.d < d.min {
			bad("%s: must be positive, got %v", d.name, d.d)
		}
	}
	total := 0.0
	for i := range c.Streams {
		if err := c.Streams[i].complete(); err != nil {
			bad("stream %d (%s): %w", i, c.Streams[i].Name, err)
			continue
		}
		s := c.Streams[i]
		total += float64(s.sends(c.Duration)*s.Connections) * (1 + 4*s.Pipeline)
	}
	if total > float64(c.MaxRequests) {
		bad("max requests: %d, but up to %.0f are intended: lower a rate or the duration", c.MaxRequests, total)
	}
	if err := errors.Join(errs...); err != nil {
		return c, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return c, nil
}

// host is what the Host header says.
func (c *Config) host() string {
	if c.Host != "" {
		return c.Host
	}
	if c.Network == "unix" {
		return "localhost"
	}
	return c.Address
}

// Validate tells whether a stream can be run, so that a mistake is found before anything else has begun.
func (s Stream) Validate() error {
	if err := s.complete(); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return nil
}

func (s *Stream) complete() error {
	def(&s.Kind, KeepAlive)
	def(&s.Name, string(s.Kind))
	def(&s.Method, http.MethodGet)
	def(&s.Path, "/")
	def(&s.Silence, DefaultSilence)
	def(&s.Status, http.StatusOK)
	switch {
	case s.Kind != KeepAlive && s.Kind != NewConn && s.Kind != Silent && s.Kind != WebSocket:
		return fmt.Errorf("kind: unknown %q", s.Kind)
	case s.Connections <= 0:
		return fmt.Errorf("connections: must be positive, got %d", s.Connections)
	case !(s.Rate > 0 && s.Rate <= 1e6):
		return fmt.Errorf("rate: must be between 0 and 1e6, got %v", s.Rate)
	case !strings.HasPrefix(s.Path, "/") || strings.ContainsAny(s.Path, " \r\n"):
		return fmt.Errorf("path: must begin with a slash and hold no blanks, got %q", s.Path)
	case s.Body < 0 || s.Body > 64<<20:
		return fmt.Errorf("body: must be between 0 and 64 MiB, got %d", s.Body)
	case s.Body > 0 && s.Method != http.MethodPost && s.Method != http.MethodPut:
		return fmt.Errorf("body: needs method POST or PUT, got %s", s.Method)
	case len(s.Payload) > 0 && (s.Body > 0 || s.Method == http.MethodGet || s.Method == http.MethodHead):
		return fmt.Errorf("payload: needs a method that carries one, and no body, got %s", s.Method)
	case strings.ContainsAny(s.Method, " \r\n\t/"):
		return fmt.Errorf("method: %q is none", s.Method)
	case s.Kind == WebSocket && (s.Method != http.MethodGet || s.Echo || s.Check != nil):
		return fmt.Errorf("kind: %s sends pings, which have no method, echo or check", WebSocket)
	case s.Silence < 0 || s.Takes < 0:
		return fmt.Errorf("silence, takes: must not be negative, got %v and %v", s.Silence, s.Takes)
	case s.Pipeline > 0 && s.Kind != KeepAlive:
		return fmt.Errorf("pipeline: needs kind %s", KeepAlive)
	}
	for name, share := range map[string]float64{"chunked": s.Chunked, "split": s.Split, "pipeline": s.Pipeline} {
		if !(share >= 0 && share <= 1) {
			return fmt.Errorf("%s: must be between 0 and 1, got %v", name, share)
		}
	}
	return nil
}

// period is the time between two sends of one connection.
func (s *Stream) period() time.Duration {
	return time.Duration(float64(time.Second) * float64(s.Connections) / s.Rate)
}

// sends is how many sends each connection intends.
func (s *Stream) sends(d time.Duration) int { return int(d / max(s.period(), 1)) }

func def[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}
