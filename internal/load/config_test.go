package load

import (
	"errors"
	"math/rand/v2"
	"net"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestRun_RefusesBadConfig(t *testing.T) {
	good := quick("127.0.0.1:1", post())
	tests := []struct {
		name string
		mod  func(*Config)
		want string
	}{
		{"no address", func(c *Config) { c.Address = "" }, "address"},
		{"network", func(c *Config) { c.Network = "udp" }, "network"},
		{"no streams", func(c *Config) { c.Streams = nil }, "streams"},
		{"no duration", func(c *Config) { c.Duration = 0 }, "duration"},
		{"negative rtt", func(c *Config) { c.RTT = -1 }, "rtt"},
		{"too much", func(c *Config) { c.Duration = time.Hour }, "max requests"},
		{"kind", func(c *Config) { c.Streams[0].Kind = "x" }, "kind"},
		{"connections", func(c *Config) { c.Streams[0].Connections = 0 }, "connections"},
		{"rate", func(c *Config) { c.Streams[0].Rate = 0 }, "rate"},
		{"path", func(c *Config) { c.Streams[0].Path = "/a b" }, "path"},
		{"body of a GET", func(c *Config) { c.Streams[0].Method = "GET" }, "body"},
		{"share", func(c *Config) { c.Streams[0].Split = 1.5 }, "split"},
		{"pipelined new connections", func(c *Config) { c.Streams[0].Kind, c.Streams[0].Pipeline = NewConn, 0.1 }, "pipeline"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := good
			c.Streams = []Stream{post()}
			tt.mod(&c)
			if _, err := Run(t.Context(), c); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), tt.want+":") {
				t.Errorf("got %v, want ErrConfig about %s", err, tt.want)
			}
		})
	}
}

func TestCompose_SameSeedSameBytes(t *testing.T) {
	s := post()
	s.Split, s.Chunked, s.Pipeline = 0.5, 0.5, 0.5
	if err := s.complete(); err != nil {
		t.Fatal(err)
	}
	draw := func(seed uint64) (all [][]byte) {
		rng := rand.New(rand.NewPCG(seed, 0))
		for k := range 50 {
			all = append(all, compose(&s, "h", rng, 0, k, time.Time{}).pieces...)
		}
		return all
	}
	if !reflect.DeepEqual(draw(1), draw(1)) {
		t.Error("one seed gives different bytes")
	}
	if reflect.DeepEqual(draw(1), draw(2)) {
		t.Error("two seeds give the same bytes")
	}
}

func TestReport_Fault(t *testing.T) {
	tests := []struct {
		name string
		r    Report
		want string
	}{
		{"good", Report{Requests: 1, OK: 1, LagLimit: time.Second}, ""},
		{"late", Report{Requests: 1, LagLimit: time.Millisecond, Lag: Quantiles{P99: 2 * time.Millisecond}}, "fell behind"},
		{"no ports", Report{Requests: 1, Local: 1}, "ports"},
		{"nothing", Report{}, "nothing was sent"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.r.Fault()
			if (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestClassOf_FaultsOfThisMachine(t *testing.T) {
	for _, err := range []error{syscall.EMFILE, syscall.EADDRNOTAVAIL, syscall.ENOBUFS} {
		if got := classOf(&net.OpError{Op: "dial", Err: err}); got != local {
			t.Errorf("%v: got %q, want local: it is not the server's fault", err, got)
		}
	}
}

func TestQuantiles(t *testing.T) {
	var d []time.Duration
	for i := 1000; i >= 1; i-- {
		d = append(d, time.Duration(i))
	}
	if got := QuantilesOf(d); got != (Quantiles{1000, 500, 990, 999, 1000}) {
		t.Errorf("got %+v", got)
	}
	if got := QuantilesOf([]time.Duration{7}); got != (Quantiles{1, 7, 7, 7, 7}) {
		t.Errorf("of one: %+v", got)
	}
}
