package verify

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"gapless/internal/load"

	"github.com/goccy/go-yaml"
)

// maxRequests bounds a file of requests.
const maxRequests = 1 << 20

// entry is one item of a file of requests.
type entry struct {
	Name        string            `yaml:"name"`
	Kind        string            `yaml:"kind"`
	Method      string            `yaml:"method"`
	Path        string            `yaml:"path"`
	Header      map[string]string `yaml:"header"`
	Body        string            `yaml:"body"`
	Status      int               `yaml:"status"`
	Rate        float64           `yaml:"rate"`
	Connections int               `yaml:"connections"`
	Slow        bool              `yaml:"slow"`
}

// ReadRequests reads a file of requests, see ParseRequests.
func ReadRequests(path string, m Mix) ([]Stream, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > maxRequests {
		return nil, fmt.Errorf("%s: has more than %d bytes", path, maxRequests)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	streams, err := ParseRequests(text, m)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return streams, nil
}

// ParseRequests reads a YAML list of requests: name, kind (keep-alive, new, silent, slow or websocket), method, path,
// header, body, status, rate and connections. An entry without a rate has an equal share of m's, one without
// connections as many as it needs; m's headers are added to all.
func ParseRequests(text []byte, m Mix) ([]Stream, error) {
	def(&m.Rate, DefaultRate)
	def(&m.Connections, DefaultConnections)
	entries, err := decode(text)
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, fmt.Errorf("holds no request: write a list of path, method, body, …")
	}
	var all []Stream
	for i, e := range entries {
		s, err := e.stream(m, len(entries))
		if err != nil {
			return nil, fmt.Errorf("request %d: %w", i+1, err)
		}
		all = append(all, s)
	}
	return all, nil
}

// decode reads YAML. The decoder panics at some input that is none of ours, such as a tag where a list should be.
func decode(text []byte) (entries []entry, err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("cannot be read as YAML: write a list of path, method, body, …, without tags")
		}
	}()
	if err := yaml.UnmarshalWithOptions(text, &entries, yaml.Strict()); err != nil {
		return nil, fmt.Errorf("%s", oneLine(yaml.FormatError(err, false, false)))
	}
	return entries, nil
}

func (e entry) stream(m Mix, of int) (Stream, error) {
	def(&e.Kind, KindKeepAlive)
	def(&e.Method, http.MethodGet)
	def(&e.Path, "/")
	def(&e.Rate, m.Rate/float64(of))
	slow := e.Slow || e.Kind == KindSlow
	s := Stream{Slow: slow, Grow: slow || e.Connections == 0 && e.Kind != KindKeepAlive, From: FromFile, AnyStatus: e.Status == 0, Stream: load.Stream{
		Name: e.Name, Method: strings.ToUpper(e.Method), Path: e.Path, Payload: []byte(e.Body), Status: e.Status, Rate: e.Rate,
		Connections: e.Connections, Header: m.Header.Clone(),
	}}
	switch e.Kind {
	case KindKeepAlive, KindSlow:
		def(&s.Connections, m.Connections)
	case KindNew:
		s.Kind = load.NewConn
		def(&s.Connections, 8)
	case KindSilent:
		s.Kind, s.Silence = load.Silent, silence
		def(&s.Connections, 8)
	case KindWebSocket:
		s.Kind, s.AnyStatus = load.WebSocket, false
		def(&s.Connections, 4)
	default:
		return s, fmt.Errorf("kind: %q is none: choose among %s", e.Kind, strings.Join(Kinds(), ", "))
	}
	def(&s.Name, fmt.Sprintf("%s %s %s", e.Kind, s.Method, s.Path))
	if s.Header == nil {
		s.Header = http.Header{}
	}
	for k, v := range e.Header {
		if err := CheckHeader(k, v); err != nil {
			return s, err
		}
		s.Header.Set(k, v)
	}
	if e.Status != 0 && (e.Status < 200 || e.Status > 599) {
		return s, fmt.Errorf("status: %d is none of an answer", e.Status)
	}
	return s, s.Stream.Validate()
}

// CheckHeader refuses what would break the request, or what the load client writes itself.
func CheckHeader(name, value string) error {
	switch http.CanonicalHeaderKey(name) {
	case "Host", "Content-Length", "Transfer-Encoding", "Connection", "X-Request-Id", "Upgrade":
		return fmt.Errorf("header %s: it is written for each request: leave it out", name)
	case "":
		return fmt.Errorf("header: has no name")
	}
	if strings.ContainsAny(name, " \t\r\n:\x00") || strings.ContainsAny(value, "\r\n\x00") {
		return fmt.Errorf("header %q: it holds what no header may hold", name)
	}
	return nil
}

func oneLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s
}
