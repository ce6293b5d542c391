//go:build linux

package bench

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"
)

// result is what one run of load has shown.
type result struct {
	count     float64 // requests
	perSecond float64
	p99       time.Duration
}

const path = "/healthz"

// generate loads a server in a closed loop over keep-alive connections: with wrk where it is installed, as it takes
// least from the cores that it shares with the server, else with a client of our own.
func generate(b testing.TB, addr string, d time.Duration) result {
	b.Helper()
	if _, err := exec.LookPath("wrk"); err == nil {
		return wrk(b, addr, d)
	}
	return closedLoop(b, addr, d)
}

var (
	wrkCount  = regexp.MustCompile(`([0-9]+) requests in`)
	wrkRate   = regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)
	wrkP99    = regexp.MustCompile(`99%\s+([0-9.]+(?:us|ms|s))`)
	wrkErrors = regexp.MustCompile(`(?m)^\s+(?:Socket errors|Non-2xx).*$`)
)

func wrk(b testing.TB, addr string, d time.Duration) result {
	b.Helper()
	out, err := exec.Command("wrk", "-t1", "-c", strconv.Itoa(connections), "-d", fmt.Sprintf("%ds", int(d.Seconds())),
		"--latency", "http://"+addr+path).CombinedOutput()
	if err != nil {
		b.Fatalf("wrk: %v: %s", err, out)
	}
	if wrong := wrkErrors.Find(out); wrong != nil {
		b.Fatalf("wrk: %s", wrong)
	}
	count, rate, p99 := wrkCount.FindSubmatch(out), wrkRate.FindSubmatch(out), wrkP99.FindSubmatch(out)
	if count == nil || rate == nil || p99 == nil {
		b.Fatalf("wrk printed no count, rate or latency: %s", out)
	}
	var r result
	var errs [3]error
	r.count, errs[0] = strconv.ParseFloat(string(count[1]), 64)
	r.perSecond, errs[1] = strconv.ParseFloat(string(rate[1]), 64)
	r.p99, errs[2] = time.ParseDuration(string(p99[1]))
	if err := errors.Join(errs[:]...); err != nil {
		b.Fatalf("wrk: %v", err)
	}
	return r
}

func closedLoop(b testing.TB, addr string, d time.Duration) result {
	b.Helper()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		took []time.Duration
	)
	began := time.Now()
	for range connections {
		wg.Go(func() {
			mine, err := askUntil(addr, began.Add(d))
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
			if err != nil {
				b.Errorf("a request to %s: %v", addr, err)
			}
		})
	}
	wg.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return result{float64(len(took)), float64(len(took)) / time.Since(began).Seconds(), quantile(took, 0.99)}
}

// askUntil sends one request after another on one connection and returns how long each took.
func askUntil(addr string, end time.Time) ([]time.Duration, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	r := bufio.NewReader(c)
	var took []time.Duration
	for {
		at := time.Now()
		if at.After(end) {
			return took, nil
		}
		if err := ask(c, r); err != nil {
			return took, err
		}
		took = append(took, time.Since(at))
	}
}

// ask sends a request on a connection and reads the response, which must be good and leave the connection open.
func ask(c net.Conn, r *bufio.Reader) error {
	if _, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: bench\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || resp.Close {
		return fmt.Errorf("answered %s, and closes: %v", resp.Status, resp.Close)
	}
	return nil
}
