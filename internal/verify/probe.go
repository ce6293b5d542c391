package verify

import (
	"bytes"
	"context"
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

// probeID stands in the first request of a stream, to see what the server makes of it.
const probeID = "gapless-verify-probe"

// ask sends the first request of a stream. A server that does not listen yet gets a moment.
func ask(ctx context.Context, p *Plan, s *Stream, dial func(context.Context, string, string) (net.Conn, error)) (status int, sameID bool, took time.Duration, err error) {
	target, err := url.Parse(s.Path)
	if err != nil {
		return 0, false, 0, err
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
			return 0, false, 0, err
		}
		for k, v := range s.Header {
			req.Header[k] = v
		}
		req.Header.Set(load.HeaderID, probeID)
		begun := time.Now()
		resp, err := client.Do(req)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if err != nil {
				return 0, false, 0, fmt.Errorf("read the answer: %w", err)
			}
			id := resp.Header.Get(load.HeaderID)
			return resp.StatusCode, id == "" || id == probeID, time.Since(begun), nil
		}
		if !errors.Is(err, syscall.ECONNREFUSED) || time.Now().After(give) {
			return 0, false, 0, errors.Unwrap(err)
		}
		retry := time.NewTimer(100 * time.Millisecond)
		select {
		case <-retry.C:
		case <-ctx.Done():
			retry.Stop()
			return 0, false, 0, context.Cause(ctx)
		}
	}
}
