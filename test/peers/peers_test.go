//go:build linux

package peers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gapless/internal/pidfd"
	"gapless/internal/procfs"
	"gapless/internal/verify"

	"github.com/cloudflare/tableflip"
	"golang.org/x/sys/unix"
)

// The load, alike for all.
var loadFlags = []string{"--upgrades", "5", "--rate", "300", "--connections", "64", "--rtt", "20ms", "--deploy-timeout", "30s"}

// patience bounds every wait for something that takes seconds at most.
const patience = 30 * time.Second

// outcome is a row of the table.
type outcome struct {
	peer    peer
	version string
	report  verify.Report
	err     error // it was not measured
}

// BenchmarkPeers measures all peers, one after the other, and prints the table; with PEERS_OUT it is written there.
func BenchmarkPeers(b *testing.B) {
	before := loadAverage()
	build(b)
	var all []outcome
	for _, p := range peers() {
		b.Run(p.name, func(b *testing.B) { // so that -bench Peers/nginx measures these alone
			o := outcome{peer: p}
			if p.needs != "" {
				if _, err := exec.LookPath(p.needs); err != nil {
					o.err = fmt.Errorf("%s is not installed", p.needs)
				}
			}
			if o.err == nil {
				o.measure(b)
			}
			all = append(all, o)
			b.ReportMetric(0, "ns/op") // nobody asks how long it took
			b.ReportMetric(float64(o.report.Drops), "dropped")
		})
	}
	text := page(all, time.Now(), before)
	fmt.Println(text)
	if out := os.Getenv("PEERS_OUT"); out != "" {
		if err := os.WriteFile(out, []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
	}
}

// measure starts the peer, verifies its deploys and ends it.
func (o *outcome) measure(b testing.TB) {
	dir, err := os.MkdirTemp("", "gapless-peer-")
	if err == nil {
		err = os.Chmod(dir, 0o755) // nginx's workers have another user
	}
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	port := freePort(b)
	addr := "127.0.0.1:" + strconv.Itoa(port)
	fill := strings.NewReplacer("{addr}", addr, "{port}", strconv.Itoa(port), "{gapless}", built.gapless, "{self}", built.self)
	for name, text := range o.peer.files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(fill.Replace(text)), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	shell := func(text string) *exec.Cmd {
		cmd := exec.Command("/bin/sh", "-c", fill.Replace(text))
		cmd.Dir = dir
		return cmd
	}
	version, err := shell(o.peer.version).Output()
	if err != nil {
		o.err = fmt.Errorf("its version: %w", err)
		return
	}
	o.version, _, _ = strings.Cut(strings.TrimSpace(string(version)), "\n")

	cmd := shell(o.peer.start)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	defer func() {
		end(b, addr, cmd.Process.Pid)
		<-ended
	}()
	if !became(func() bool { return answers(addr) }) {
		text, _ := os.ReadFile(log.Name())
		o.err = fmt.Errorf("it does not answer: %s", lastLine(text))
		return
	}
	o.verify(dir, addr, fill)
}

func (o *outcome) verify(dir, addr string, fill *strings.Replacer) {
	script := o.peer.script
	if script == "" {
		script = o.peer.deploy
	}
	path := filepath.Join(dir, "deploy.sh")
	if o.err = os.WriteFile(path, []byte("cd "+dir+"\n"+fill.Replace(script)+"\n"), 0o644); o.err != nil {
		return
	}
	cmd := exec.Command(built.gapless, append([]string{"verify", "--json", "--url", "http://" + addr + "/", "--deploy", "sh " + path}, loadFlags...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		o.err = err
		return
	}
	if err := json.Unmarshal(stdout.Bytes(), &o.report); err != nil || o.report.Requests == 0 {
		o.err = fmt.Errorf("not measured: %s", lastLine(stderr.Bytes()))
	}
}

func lastLine(text []byte) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}

// end ends everything that listens at the address, and the process that was started.
func end(b testing.TB, addr string, started int) {
	for i, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		pids := []int{started}
		for _, p := range procfs.PortHolders("tcp", addr) {
			pids = append(pids, p.PID)
		}
		for _, pid := range pids {
			if p, err := pidfd.Open(pid); err == nil {
				_ = p.Signal(sig)
				_ = p.Close()
			}
		}
		gone := became(func() bool { return len(procfs.PortHolders("tcp", addr)) == 0 })
		if i == 1 && !gone {
			b.Errorf("something still listens at %s", addr)
		}
	}
}

// became polls: what it waits for is other processes'.
func became(ok func() bool) bool {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for give := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(give) {
			return false
		}
	}
	return true
}

func answers(addr string) bool {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + addr + "/")
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func freePort(b testing.TB) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// page is docs/peers.md.
func page(all []outcome, at time.Time, load string) string {
	var s strings.Builder
	fmt.Fprintf(&s, `# What deploys cost, measured alike

Written by `+"`make bench-peers`"+` on %s: %d cores, Linux %s, %s. Every server answers `+"`GET /`"+` with a few bytes and was
deployed five times under the same load, by
`+"`gapless verify --url http://127.0.0.1:PORT/ --deploy CMD %s`"+`:
clients that are 20 ms away, never repeat a request, and send on kept-alive connections, on new ones, and on new ones that are
silent for 0.3 s first. What counts as dropped stands in [verify.md](verify.md). Clients and servers share the machine (its
load average when this began: %s), so read the latency as a comparison within this page, if at all.

A server may close a connection that is idle; where a client sends at that moment, it is a dropped request as well.

| server | version | deployed by | requests | dropped on kept-alive connections | dropped on new ones | idle connections closed | p99 steady | p99 around the worst deploy | a deploy takes |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
`, at.UTC().Format("2006-01-02"), runtime.NumCPU(), kernel(), runtime.Version(), strings.Join(loadFlags, " "), load)
	for _, o := range all {
		fmt.Fprintf(&s, "| %s |\n", strings.Join(row(o), " | "))
	}
	s.WriteString("\n## How each is run\n\n")
	for _, o := range all {
		fmt.Fprintf(&s, "- **%s**: `%s`", o.peer.name, strings.NewReplacer("{gapless}", "gapless", "$(command -v nginx)", "/usr/sbin/nginx", "exec ", "", "{self}", "a program of the test's own", " --control ./sock", "", "{addr}", "127.0.0.1:PORT", "{port}", "PORT", roleVariable+"=tableflip PEERS_ADDR={addr} ", "").Replace(o.peer.start))
		if o.peer.remark != "" {
			fmt.Fprintf(&s, " (%s)", o.peer.remark)
		}
		s.WriteString("\n")
	}
	s.WriteString("\nThe configurations and the scripts that wait for a deploy's end stand in `test/peers`.\n")
	return s.String()
}

// row are the cells of one outcome.
func row(o outcome) []string {
	cells := []string{o.peer.name, o.version, "`" + o.peer.deploy + "`"}
	if o.err != nil {
		return append(cells, o.err.Error(), "", "", "", "", "", "")
	}
	r := o.report
	kept, fresh := 0, 0
	for _, st := range r.Streams {
		if st.Kind == verify.KindKeepAlive {
			kept += st.Drops
		} else {
			fresh += st.Drops
		}
	}
	took, failed := 0.0, 0
	for _, a := range r.Acts {
		took += float64(a.Took) / float64(len(r.Acts))
		if !a.OK {
			failed++
		}
	}
	takes := fmt.Sprintf("%.2f s", took)
	if failed > 0 {
		takes += fmt.Sprintf(", %d failed", failed)
	}
	if r.Generator.Fault != "" {
		takes += "; " + r.Generator.Fault
	}
	return append(cells, strconv.Itoa(r.Requests), bold(kept), bold(fresh), strconv.Itoa(r.ClosedIdle), milliseconds(float64(r.Steady.P99)), milliseconds(float64(r.Worst.P99)), takes)
}

// bold makes what should be 0 stand out.
func bold(n int) string {
	if n == 0 {
		return "0"
	}
	return fmt.Sprintf("**%d**", n)
}

func milliseconds(s float64) string { return fmt.Sprintf("%.0f ms", s*1000) }

// loadAverage is that of the last minute.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(text), " ")
	return first
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "?"
	}
	release, _, _ := strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	return release
}

// The page is a table whatever came of a peer.
func TestPage(t *testing.T) {
	p := peers()
	good := outcome{peer: p[0], version: "1.0", report: verify.Report{Requests: 100, Drops: 2, Streams: []verify.StreamReport{{Kind: verify.KindKeepAlive, Drops: 2}, {Kind: verify.KindNew}}, Acts: []verify.ActReport{{OK: true, Took: 0.5}, {}}}}
	text := page([]outcome{good, {peer: p[1], err: errors.New("uvicorn is not installed")}}, time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC), "0.10")
	columns := 0
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "|") {
			continue
		}
		if n := strings.Count(line, "|"); columns != 0 && n != columns {
			t.Errorf("%d bars, and %d in the row before: %s", n, columns, line)
		} else {
			columns = n
		}
	}
	for _, want := range []string{"| **2** | 0 |", "0.25 s, 1 failed", "uvicorn is not installed", "2026-01-02"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	names := map[string]bool{}
	for _, p := range peers() {
		if names[p.name] || p.deploy == "" || p.start == "" || p.version == "" {
			t.Errorf("the peer %q is twice there or lacks something", p.name)
		}
		names[p.name] = true
	}
	if strings.Contains(text, "{") && !strings.Contains(text, "{fd}") {
		t.Errorf("something is not replaced in\n%s", text)
	}
}

// serveByTableflip is a program as tableflip's own example shows it: it upgrades itself on HUP, and the old process stops
// by http.Server.Shutdown.
func serveByTableflip() error {
	upg, err := tableflip.New(tableflip.Options{PIDFile: "pid", UpgradeTimeout: 20 * time.Second})
	if err != nil {
		return err
	}
	defer upg.Stop()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	go func() {
		for range hup {
			if err := upg.Upgrade(); err != nil {
				fmt.Fprintln(os.Stderr, "upgrade:", err)
			}
		}
	}()
	l, err := upg.Listen("tcp", os.Getenv("PEERS_ADDR"))
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) })}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	if err := upg.Ready(); err != nil {
		return err
	}
	select {
	case err := <-served:
		return err
	case <-upg.Exit():
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return srv.Shutdown(ctx)
}
