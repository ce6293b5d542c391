//go:build linux

package test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gapless/internal/control"
)

// phpFPM returns the php-fpm that is installed, whose name has a version in Debian.
func phpFPM(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob("/usr/sbin/php-fpm*")
	if err != nil || len(found) == 0 {
		return installed(t, "php-fpm")
	}
	return found[0]
}

// fastCGI asks for a script over a connection of its own and returns what it printed.
func fastCGI(addr, script, query string) (string, error) {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	record := func(kind byte, body string) []byte {
		head := []byte{1, kind, 0, 1, 0, 0, 0, 0}
		binary.BigEndian.PutUint16(head[4:], uint16(len(body)))
		return append(head, body...)
	}
	params := ""
	for _, p := range [][2]string{{"SCRIPT_FILENAME", script}, {"REQUEST_METHOD", "GET"}, {"QUERY_STRING", query}} {
		params += string([]byte{byte(len(p[0])), byte(len(p[1]))}) + p[0] + p[1]
	}
	out := record(1, "\x00\x01\x00\x00\x00\x00\x00\x00")
	out = append(append(append(out, record(4, params)...), record(4, "")...), record(5, "")...)
	if _, err := c.Write(out); err != nil {
		return "", err
	}
	var text strings.Builder
	for r := bufio.NewReader(c); ; {
		var head [8]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return text.String(), fmt.Errorf("the answer is cut off: %w", err)
		}
		body := make([]byte, int(binary.BigEndian.Uint16(head[4:]))+int(head[6]))
		if _, err := io.ReadFull(r, body); err != nil {
			return text.String(), fmt.Errorf("the answer is cut off: %w", err)
		}
		switch body = body[:len(body)-int(head[6])]; head[1] {
		case 6:
			text.Write(body)
		case 3:
			_, answer, _ := strings.Cut(text.String(), "\r\n\r\n")
			return answer, nil
		}
	}
}

// php-fpm gets the socket, is stopped by QUIT, and finishes what it has begun.
func TestForeign_PHPOverUpgrades(t *testing.T) {
	program := phpFPM(t)
	s := prepare(t)
	s.addr = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	script, config := filepath.Join(s.dir, "index.php"), filepath.Join(s.dir, "fpm.conf")
	writeFile(t, script, "<?php usleep(1000 * (int)($_GET['ms'] ?? 5)); echo getenv('GAPLESS_GENERATION');")
	pool := "[global]\nerror_log = /proc/self/fd/2\nprocess_control_timeout = 30s\n" +
		"[www]\nlisten = %s\npm = static\npm.max_children = 8\nclear_env = no\n"
	if os.Getuid() == 0 {
		pool += "user = nobody\ngroup = nogroup\n"
	}
	writeFile(t, config, fmt.Sprintf(pool, s.addr))
	s.run(options{flags: []string{"--listen", s.addr}, command: []string{program, "-n", "-y", config}})
	s.await("php-fpm is ready", msg("Application startup complete"))

	var wg sync.WaitGroup
	stop := make(chan struct{})
	failures := make(chan error, 1000)
	answers := make([]int, 4)
	for i := range answers {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if text, err := fastCGI(s.addr, script, ""); err != nil || text == "" {
					failures <- fmt.Errorf("after %d answers: %q, %w", answers[i], text, err)
					return
				}
				answers[i]++
			}
		})
	}
	n := counted(2, 10)
	for generation := 2; generation <= n+1; generation++ {
		slow := make(chan string, 1)
		go func() {
			text, err := fastCGI(s.addr, script, "ms=1500")
			slow <- fmt.Sprint(text, err)
		}()
		s.upgrade(generation)
		if text := <-slow; text != fmt.Sprintf("%d<nil>", generation-1) && text != fmt.Sprintf("%d<nil>", generation) {
			t.Errorf("a slow request got %q", text)
		}
	}
	close(stop)
	wg.Wait()
	close(failures)
	for err := range failures {
		t.Error(err)
	}
	if text, err := fastCGI(s.addr, script, ""); err != nil || text != fmt.Sprint(n+1) {
		t.Errorf("at last: %q, %v", text, err)
	}
	s.becomes("only the last generation lives", func(st control.Status) bool {
		return len(st.Generations) == 1 && st.Generations[0].Generation == n+1
	})
	s.stop()
	// Its children take a socket that does not block for a broken one, and end.
	if text := s.out.text(); strings.Contains(text, "[pool www] child ") {
		t.Error("children of php-fpm ended and were started anew")
	}
}
