//go:build linux

package test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gapless/internal/notify"

	"golang.org/x/sys/unix"
)

// manager stands in for systemd: it runs a gapless as a service of Type=notify, hears it, and keeps descriptors for it.
type manager struct {
	t    testing.TB
	sock *notify.Socket
	path string
	done chan struct{}

	watchdog time.Duration // WatchdogSec=
	max      int           // FileDescriptorStoreMax=
	sockets  []kept        // of socket units

	mu    sync.Mutex
	main  int
	said  []datagram
	store []kept
}

// kept is a descriptor with its name.
type kept struct {
	name string
	file *os.File
}

// datagram is one message of the service.
type datagram struct {
	text string // its fields in a fixed order, with PID and the time replaced by words
	at   time.Time
	fds  int
}

func newManager(t testing.TB) *manager {
	t.Helper()
	m := &manager{t: t, path: filepath.Join(publicDir(t), "notify"), done: make(chan struct{})}
	uc, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer uc.Close()
	f, err := uc.File()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(int(f.Fd()), true); err != nil {
		t.Fatal(err)
	}
	if m.sock, err = notify.FromFile(f, m.path); err != nil {
		t.Fatal(err)
	}
	go m.hear()
	t.Cleanup(func() {
		_ = m.sock.SetReadDeadline(time.Unix(1, 0))
		<-m.done
		m.sock.Close()
		m.closeStore()
	})
	return m
}

// run starts the service, and again after its end: it then gets back what it has had kept, the latest first, as systemd does.
func (m *manager) run(s *server, o options) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	names := []string{}
	for _, k := range append(slices.Clone(m.sockets), m.store...) {
		names, o.files = append(names, k.name), append(o.files, k.file)
	}
	o.env = append(o.env, "NOTIFY_SOCKET="+m.path)
	set := ""
	if len(names) > 0 {
		o.env = append(o.env, "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
		set += "LISTEN_PID=$$ "
	}
	if m.max > 0 {
		o.env = append(o.env, "FDSTORE="+strconv.Itoa(m.max))
	}
	if m.watchdog > 0 {
		o.env = append(o.env, "WATCHDOG_USEC="+strconv.FormatInt(m.watchdog.Microseconds(), 10))
		set += "WATCHDOG_PID=$$ "
	}
	o.wrapper = append(o.wrapper, "/bin/sh", "-c", set+`exec "$0" "$@"`)
	s.run(o)
	m.main = s.pid()
}

// start runs a service and waits until it is ready.
func (m *manager) start(o options) *server {
	m.t.Helper()
	s := prepare(m.t)
	m.run(s, o)
	m.ready(s)
	return s
}

// ready waits until the service that runs has said so.
func (m *manager) ready(s *server) {
	m.t.Helper()
	m.await("READY=1 of a start", func(text string) bool { return strings.HasPrefix(text, "READY=1 MAINPID=PID ") })
	s.await("the first workers are ready", msg("Application startup complete"))
	s.first = s.inCharge()
}

// hear is the manager's loop.
func (m *manager) hear() {
	defer close(m.done)
	for {
		msg, err := m.sock.ReceiveFDs()
		if err != nil {
			return
		}
		m.mu.Lock()
		m.take(msg)
		m.mu.Unlock()
	}
}

// fieldOrder is that of a datagram's text.
var fieldOrder = []string{"READY", "RELOADING", "STOPPING", "WATCHDOG", "MAINPID", "MONOTONIC_USEC", "EXTEND_TIMEOUT_USEC", "FDSTORE", "FDSTOREREMOVE", "FDPOLL", "FDNAME", "STATUS"}

func (m *manager) take(msg notify.Message) {
	defer func() { notify.CloseFDs(msg.FDs) }()
	if msg.PID != m.main {
		m.t.Errorf("a datagram of process %d, which is not the service's main process %d (NotifyAccess=main): %v", msg.PID, m.main, msg.Fields)
		return
	}
	d := datagram{at: time.Now(), fds: len(msg.FDs)}
	var words []string
	for _, key := range fieldOrder {
		value, ok := msg.Fields[key]
		if !ok {
			continue
		}
		if key == "MAINPID" && value == strconv.Itoa(m.main) {
			value = "PID"
		}
		if key == "MONOTONIC_USEC" {
			n, _ := strconv.ParseInt(value, 10, 64)
			if age := monotonic() - n; n > 0 && age >= 0 && age < patience.Microseconds() {
				value = "NOW"
			}
		}
		words = append(words, key+"="+value)
		delete(msg.Fields, key)
	}
	for key := range msg.Fields {
		m.t.Errorf("a field that is none of systemd's: %s", key)
	}
	d.text = strings.Join(words, " ")
	m.said = append(m.said, d)
	name := regexp.MustCompile(`FDNAME=(\S+)`).FindStringSubmatch(d.text)
	switch {
	case strings.HasPrefix(d.text, "FDSTOREREMOVE=1"):
		m.store = slices.DeleteFunc(m.store, func(k kept) bool {
			if k.name != name[1] {
				return false
			}
			k.file.Close()
			return true
		})
	case strings.HasPrefix(d.text, "FDSTORE=1"):
		for _, fd := range msg.FDs {
			if len(m.store) >= m.max {
				m.t.Errorf("more than FileDescriptorStoreMax=%d descriptors: %s", m.max, d.text)
				continue
			}
			dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
			if err != nil {
				m.t.Error(err)
				continue
			}
			m.store = append([]kept{{name[1], os.NewFile(uintptr(dup), name[1])}}, m.store...)
		}
	case d.fds > 0:
		m.t.Errorf("descriptors with %s", d.text)
	}
}

func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano() / 1000
}

// closeStore forgets what is kept, as systemd does when a service has ended for good.
func (m *manager) closeStore() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.store {
		k.file.Close()
	}
	m.store = nil
}

// names returns those of what is kept, in order.
func (m *manager) names() (names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.store {
		names = append(names, k.name)
	}
	slices.Sort(names)
	return names
}

// texts returns what has been said since the last call of mark.
func (m *manager) texts() (texts []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.said {
		texts = append(texts, d.text)
	}
	return texts
}

// mark forgets what has been said so far.
func (m *manager) mark() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.said = nil
}

// await waits until something has been said.
func (m *manager) await(what string, match func(string) bool) {
	m.t.Helper()
	if !became(patience, func() bool { return slices.ContainsFunc(m.texts(), match) }) {
		m.t.Fatalf("not within %v: %s; there was\n%s", patience, what, strings.Join(m.texts(), "\n"))
	}
}

// exactly waits for the last of the datagrams that are wanted, each a regular expression, and demands that these and no
// others were said: except for the status, which may change on the way, and for the wish for patience where busy allows it.
func (m *manager) exactly(busy bool, wanted ...string) {
	m.t.Helper()
	match := func(pattern, text string) bool { return regexp.MustCompile("^(?:" + pattern + ")$").MatchString(text) }
	acts := func() (acts []string) {
		for _, text := range m.texts() {
			switch {
			case match(headline+`generation \d+ [a-z]+ with \d+ of \d+ workers.*|`+headline+`(starting|stopping)`, text):
			case busy && text == "EXTEND_TIMEOUT_USEC=15000000":
			default:
				acts = append(acts, text)
			}
		}
		return acts
	}
	became(patience, func() bool { return len(acts()) >= len(wanted) })
	got := acts()
	ok := len(got) == len(wanted)
	for i := 0; ok && i < len(got); i++ {
		ok = match(wanted[i], got[i])
	}
	if !ok {
		m.t.Errorf("the manager was told\n\t%s\nand is to be told\n\t%s\nall in all\n\t%s", strings.Join(got, "\n\t"), strings.Join(wanted, "\n\t"),
			strings.Join(m.texts(), "\n\t"))
	}
	m.mark()
}

// headline is how each status begins.
const headline = `STATUS=gapless \S+, pid \d+: `

// serving is the whole status of a generation that serves.
func serving(generation, workers int) string {
	return fmt.Sprintf("%sgeneration %d serving with %d of %d workers", headline, generation, workers, workers)
}

// killAll kills all of a service at once, as systemd does with what is left of one whose main process was killed
// (KillMode=mixed).
func (m *manager) killAll(s *server) {
	m.t.Helper()
	left := s.tree()
	// At once means that nobody acts on the end of another. Above all, the kernel continues stopped workers when their master
	// dies, and they would accept somebody in their last moment.
	all := []int{s.pid()}
	for _, p := range left {
		all = append(all, p.PID)
	}
	stop(m.t, all)
	for _, pid := range slices.Backward(all) { // children come after their parents
		kill(pid)
	}
	<-s.exited
	eventually(m.t, patience, "all of it is dead", func() bool { return len(leftovers(s.mark)) == 0 })
	reapOrphans()
}
