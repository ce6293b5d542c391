package verify

import (
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"gapless/internal/load"
)

// The kinds of clients of a Mix, as users choose among them.
const (
	KindKeepAlive = "keep-alive" // kept-alive connections
	KindNew       = "new"        // a connection for each request
	KindSilent    = "silent"     // a connection that says nothing for a while first
	KindSlow      = "slow"       // requests that take long
	KindWebSocket = "websocket"  // pings on open WebSockets
)

// Kinds lists them.
func Kinds() []string {
	return []string{KindKeepAlive, KindNew, KindSilent, KindSlow, KindWebSocket}
}

// silence is how long silent connections are silent: longer than it takes to begin to drain.
const silence = 300 * time.Millisecond

// Mix describes the usual clients of a server.
type Mix struct {
	BuiltIn     bool     // the server is gapless's own app, of which all paths are known
	Kinds       []string // empty: all that can be
	Rate        float64  // requests per second of all clients together; 0 = DefaultRate
	Connections int      // kept-alive ones; 0 = DefaultConnections

	Method string // GET
	Path   string // "/"
	Header http.Header
	Body   []byte
	Status int    // 0: that of the first answer
	Slow   string // a path whose answer takes a while
	WS     string // a path that takes WebSockets
}

// Streams returns the clients.
func (m Mix) Streams() ([]Stream, error) {
	def(&m.Rate, DefaultRate)
	def(&m.Connections, DefaultConnections)
	def(&m.Method, http.MethodGet)
	plain := m.Path == "" && m.Method == http.MethodGet && len(m.Body) == 0
	def(&m.Path, "/")
	for _, k := range m.Kinds {
		if !slices.Contains(Kinds(), k) {
			return nil, fmt.Errorf("%q is no kind of client: choose among %s", k, strings.Join(Kinds(), ", "))
		}
	}
	var all []Stream
	if m.BuiltIn && plain {
		all = m.builtIn()
	} else {
		all = m.foreign()
	}
	all = append(all, m.extra()...)
	if len(m.Kinds) > 0 {
		all = slices.DeleteFunc(all, func(s Stream) bool { return !slices.Contains(m.Kinds, s.kind()) })
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no client of the kinds %s is left: slow ones need --slow PATH, websocket ones --ws PATH", strings.Join(m.Kinds, ", "))
	}
	scale(all, m.Rate)
	return all, nil
}

func (s Stream) kind() string {
	switch {
	case s.Slow:
		return KindSlow
	case s.Kind == load.NewConn:
		return KindNew
	case s.Kind == load.Silent:
		return KindSilent
	case s.Kind == load.WebSocket:
		return KindWebSocket
	}
	return KindKeepAlive
}

// builtIn are clients of gapless's own app: it echoes what it is sent, so that every byte can be compared.
func (m Mix) builtIn() []Stream {
	echo := load.Stream{Method: http.MethodPost, Path: "/echo", Body: 200, Echo: true, Header: m.Header}
	post, fresh := echo, echo
	post.Name, post.Kind, post.Connections, post.Rate, post.Chunked, post.Split = "keep-alive POST", load.KeepAlive, m.Connections, 40, 0.3, 0.2
	fresh.Name, fresh.Kind, fresh.Connections, fresh.Rate = "new POST", load.NewConn, 8, 20
	return []Stream{
		{Stream: load.Stream{Name: "keep-alive GET", Connections: m.Connections, Rate: 20, Path: "/", Header: m.Header}},
		{Stream: post},
		{Stream: fresh, Grow: true},
		{Grow: true, Stream: load.Stream{Name: "silent GET", Kind: load.Silent, Silence: silence, Connections: 8, Rate: 5, Path: "/", Header: m.Header}},
	}
}

// foreign are clients of a server of which nothing is known.
func (m Mix) foreign() []Stream {
	one := load.Stream{Method: m.Method, Path: m.Path, Header: m.Header, Payload: m.Body, Status: m.Status}
	keep, fresh, silent := one, one, one
	keep.Name, keep.Kind, keep.Connections, keep.Rate = "keep-alive "+m.Method, load.KeepAlive, m.Connections, 60
	fresh.Name, fresh.Kind, fresh.Connections, fresh.Rate = "new "+m.Method, load.NewConn, 8, 30
	silent.Name, silent.Kind, silent.Connections, silent.Rate, silent.Silence = "silent "+m.Method, load.Silent, 8, 5, silence
	var all []Stream
	for _, s := range []load.Stream{keep, fresh, silent} {
		all = append(all, Stream{Stream: s, AnyStatus: m.Status == 0, Grow: s.Kind != load.KeepAlive, From: FromPath})
	}
	return all
}

// extra are clients that need a path of their own.
func (m Mix) extra() []Stream {
	if m.BuiltIn {
		def(&m.Slow, "/slow?ms=500")
		def(&m.WS, "/ws")
	}
	var all []Stream
	if m.Slow != "" {
		all = append(all, Stream{Slow: true, AnyStatus: true, Grow: true, From: FromSlow, Stream: load.Stream{Name: "slow GET", Connections: 8, Rate: 5, Path: m.Slow, Header: m.Header}})
	}
	if m.WS != "" {
		all = append(all, Stream{Grow: true, From: FromWS, Stream: load.Stream{Name: "websocket", Kind: load.WebSocket, Connections: 4, Rate: 10, Path: m.WS, Header: m.Header}})
	}
	return all
}

// scale turns shares into rates.
func scale(all []Stream, rate float64) {
	total := 0.0
	for _, s := range all {
		total += s.Rate
	}
	for i := range all {
		s := &all[i]
		s.Rate *= rate / total
	}
}

// enough connections for requests of a duration: twice as many as are busy on average, for they do not come evenly.
func enough(rate float64, takes time.Duration) int {
	return int(math.Ceil(rate*takes.Seconds()*2)) + 2
}
