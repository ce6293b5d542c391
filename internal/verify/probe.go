package verify

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"gapless/internal/load"
)

const (
	// probeID stands in the first request of a stream, to see what the server makes of it.
	probeID = "gapless-verify-probe"

	waitFor = 5 * time.Second       // how long a server may refuse connections at first
	patient = 20 * time.Millisecond // an answer that takes longer is asked for again: the first is often slower than those after it
)

// answer is what the server made of the first request of a stream.
type answer struct {
	status int
	sameID bool // an X-Request-Id in it was the request's
	took   time.Duration
}

// probe asks once for what each stream will ask for, so that the load begins only against a server that answers, and
// learns which status is right and how long an answer takes.
func probe(ctx context.Context, p *Plan) error {
	for i := range p.Streams {
		s := &p.Streams[i]
		if err := s.Validate(); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		a, err := p.ask(ctx, s)
		if err != nil {
			return fmt.Errorf("%w: %s does not answer %s %s: %w", ErrNothing, p.URL.Host, s.Method, s.Path, err)
		}
		if why := s.unfit(a.status); why != "" {
			return fmt.Errorf("%w: %s", ErrNothing, why)
		}
		for range 2 {
			if a.took <= patient || s.Slow || s.Kind == load.WebSocket {
				break
			}
			again, err := p.ask(ctx, s)
			if err != nil {
				return fmt.Errorf("%w: %s does not answer %s %s a second time: %w", ErrNothing, p.URL.Host, s.Method, s.Path, err)
			}
			a.took = min(a.took, again.took)
		}
		s.learn(a, p.RTT)
	}
	return nil
}

// unfit says why a server cannot be measured by its answers to a stream; "" if it can be. A status that was not asked for
// and means an error is most likely that of a path that does not exist: all of a server would pass by it.
func (s *Stream) unfit(status int) string {
	says := fmt.Sprintf("%s %s answers %d %s", s.Method, s.Path, status, http.StatusText(status))
	want := s.Status
	switch {
	case s.Kind == load.WebSocket:
		if status != http.StatusSwitchingProtocols {
			return says + " and opens no WebSocket" + s.mend("")
		}
		return ""
	case s.AnyStatus:
		if status < http.StatusBadRequest {
			return ""
		}
		return says + s.mend(fmt.Sprintf("or --expect-status %d if that is right", status))
	}
	if def(&want, http.StatusOK); status != want {
		return fmt.Sprintf("%s, not %d%s", says, want, s.mend(""))
	}
	return ""
}

// mend says what to do about an answer that is unfit.
func (s *Stream) mend(or string) string {
	switch s.From {
	case "":
		return ""
	case FromFile:
		return ": mend its path, or its status, in the file of requests"
	case FromPath:
		if or != "" {
			return "; give --path, " + or
		}
	}
	return "; give another " + s.From
}

// learn takes from the first answer what is not known of a stream.
func (s *Stream) learn(a answer, rtt time.Duration) {
	if s.AnyStatus {
		s.Status = a.status
	}
	s.AnyID = !a.sameID
	if s.Kind != load.WebSocket { // a ping is answered by the server, not by its application
		s.Takes = a.took
	}
	if s.Grow {
		s.Connections = max(s.Connections, enough(s.Rate, s.Busy(rtt)))
	}
}

// dial connects as the load does.
func (p *Plan) dial() func(context.Context, string, string) (net.Conn, error) {
	if p.URL.Scheme == "https" {
		return (&tls.Dialer{Config: p.tls()}).DialContext
	}
	return (&net.Dialer{}).DialContext
}

// ask sends the first request of a stream. A server that does not listen yet gets a moment.
func (p *Plan) ask(ctx context.Context, s *Stream) (answer, error) {
	dial := p.dial()
	target, err := url.Parse(s.Path)
	if err != nil {
		return answer{}, err
	}
	target.Scheme, target.Host = "http", p.URL.Host // dial speaks TLS by itself
	client := &http.Client{
		Timeout:       p.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dial(ctx, network, p.address())
		}},
	}
	body := s.Payload
	if s.Body > 0 {
		body = bytes.Repeat([]byte("x"), s.Body)
	}
	give := time.Now().Add(waitFor)
	for {
		req, err := http.NewRequestWithContext(ctx, s.Method, target.String(), bytes.NewReader(body))
		if err != nil {
			return answer{}, err
		}
		for k, v := range s.Header {
			req.Header[k] = v
		}
		req.Header.Set(load.HeaderID, probeID)
		if s.Kind == load.WebSocket {
			load.AskWebSocket(req.Header)
		}
		begun := time.Now()
		resp, err := client.Do(req)
		if err == nil {
			if resp.StatusCode != http.StatusSwitchingProtocols { // else it is a connection, without an end
				_, err = io.Copy(io.Discard, resp.Body)
			}
			_ = resp.Body.Close()
			if err != nil {
				return answer{}, fmt.Errorf("read the answer: %w", err)
			}
			id := resp.Header.Get(load.HeaderID)
			return answer{resp.StatusCode, id == "" || id == probeID, time.Since(begun)}, nil
		}
		var late net.Error
		switch {
		case ctx.Err() != nil:
			return answer{}, context.Cause(ctx)
		case errors.As(err, &late) && late.Timeout():
			return answer{}, fmt.Errorf("no answer within %v", p.Timeout)
		case !errors.Is(err, syscall.ECONNREFUSED) || time.Now().After(give):
			return answer{}, errors.Unwrap(err)
		}
		retry := time.NewTimer(100 * time.Millisecond)
		select {
		case <-retry.C:
		case <-ctx.Done():
			retry.Stop()
			return answer{}, context.Cause(ctx)
		}
	}
}
